"""Embedded datasets made from a seed: CT-like and MR-like torsos with ten organs, and fundus photographs."""
