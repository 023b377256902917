"""From volumes on any grid to arrays on the prepared grid, and the plan that says how."""
