"""The average torso as data: organs, bones, soft tissue and distractors, listed in the order they are painted.

Body coordinates are RAS+ mm with the origin between the kidneys: x grows to the patient's right, so the liver is at
x > 0 and the spleen at x < 0. Sizes are those of an average adult, simplified; what is thinner than about 16 mm has no
label.
"""

from __future__ import annotations

from pipeline.phantom.shapes import WALL_MM, Ball, Half, Part, Rings, Trunk, Tube, both_sides, filler, inner, organ

ORGANS: tuple[str, ...] = (
    "liver",
    "spleen",
    "kidney_right",
    "kidney_left",
    "gallbladder",
    "urinary_bladder",
    "aorta",
    "spine",
    "lung_right",
    "lung_left",
)
"""Labelled organs; the label value is the position, counted from 1."""

TRUNK = Trunk(
    (
        (-230.0, 156.0, 98.0),
        (-130.0, 152.0, 95.0),
        (-50.0, 142.0, 95.0),
        (40.0, 149.0, 102.0),
        (120.0, 153.0, 106.0),
        (250.0, 128.0, 92.0),
    )
)
"""Muscle surface of the trunk."""

_TORSO = (
    Part("table", "table", (Ball((0.0, 700.0, 0.0), (840.0, 840.0, 4000.0)),), fixed=True),
    Part("table_top", "air", (Ball((0.0, 700.0, 0.0), (832.0, 832.0, 4000.0)),), fixed=True),
    Part("skin", "fat", depth_mm=-18.0),
    Part("wall", "muscle", depth_mm=0.0),
    Part("cavity", "fat", depth_mm=WALL_MM),
    Part("ribs", "bone", (Rings(27.0, 9.0, 0.45, 5.0),), depth_mm=2.0, depth_stop_mm=10.0),
    Part("sternum", "bone", (Tube(((0.0, 98.0, 70.0), (0.0, 94.0, 190.0)), (16.0, 17.0)),), depth_mm=2.0),
    *both_sides(Part("gluteal", "muscle", (Ball((85.0, -78.0, -165.0), (58.0, 34.0, 62.0)),))),
    *both_sides(
        Part("hip", "bone", (Ball((96.0, -26.0, -136.0), (14.0, 52.0, 54.0), (0.0, -18.0, 25.0)),), depth_mm=2.0)
    ),
    *both_sides(inner("hip_marrow", "marrow", "hip", 3.5)),
    *both_sides(
        Part(
            "back",
            "muscle",
            (Tube(((36.0, -82.0, -190.0), (34.0, -80.0, 0.0), (28.0, -82.0, 250.0)), (24.0, 25.0, 19.0)),),
        )
    ),
    *both_sides(
        Part(
            "psoas",
            "muscle",
            (Tube(((25.0, -50.0, 20.0), (44.0, -42.0, -70.0), (72.0, -10.0, -210.0)), (9.0, 20.0, 22.0)),),
        )
    ),
)

_CHEST = (
    organ("lung_right", "lung", Ball((76.0, -2.0, 132.0), (59.0, 86.0, 108.0)), varies=0.5),
    organ("lung_left", "lung", Ball((-76.0, -2.0, 132.0), (57.0, 84.0, 107.0)), varies=0.5),
    *both_sides(
        inner(
            "lung_artery",
            "vein",
            "lung",
            4.0,
            Tube(((20.0, -5.0, 125.0), (60.0, -20.0, 105.0), (110.0, -45.0, 85.0)), (8.0, 5.0, 2.5)),
        )
    ),
    *both_sides(
        inner(
            "lung_vein",
            "vein",
            "lung",
            4.0,
            Tube(((20.0, 0.0, 130.0), (62.0, 15.0, 165.0), (88.0, 30.0, 205.0)), (8.0, 4.5, 2.5)),
        )
    ),
    filler("dome_right", "fat", Ball((70.0, 0.0, 5.0), (88.0, 112.0, 82.0))),
    filler("dome_left", "fat", Ball((-70.0, 0.0, 0.0), (88.0, 112.0, 80.0))),
    filler("heart", "heart", Ball((-22.0, 26.0, 108.0), (50.0, 42.0, 44.0), (0.0, 25.0, 15.0)), varies=0.7),
)

_ABDOMEN = (
    organ(
        "liver",
        "liver",
        Ball((76.0, 4.0, 26.0), (66.0, 80.0, 60.0)),
        Ball((6.0, 42.0, 38.0), (62.0, 36.0, 28.0), (0.0, 12.0, 0.0)),
        varies=0.8,
        blend_mm=22.0,
    ),
    inner(
        "portal_vein",
        "vein",
        "liver",
        3.0,
        Tube(((14.0, 8.0, 4.0), (55.0, 4.0, 18.0), (110.0, 16.0, 34.0)), (8.0, 6.5, 3.5)),
    ),
    inner(
        "hepatic_vein",
        "vein",
        "liver",
        3.0,
        Tube(((20.0, -18.0, 72.0), (58.0, 18.0, 56.0), (92.0, 48.0, 36.0)), (7.0, 5.5, 3.0)),
    ),
    filler("mesentery", "fat", Ball((14.0, 16.0, -78.0), (92.0, 82.0, 64.0)), varies=0.5),
    filler(
        "stomach",
        "muscle",
        Ball((-58.0, 32.0, 48.0), (38.0, 36.0, 44.0), (0.0, 15.0, 0.0)),
        Ball((-14.0, 48.0, 2.0), (32.0, 20.0, 20.0)),
        varies=1.0,
        blend_mm=20.0,
    ),
    inner("stomach_food", "food", "stomach", 4.0),
    inner("stomach_air", "air", "stomach", 4.0, Half(1, 46.0)),
    filler(
        "colon_right",
        "muscle",
        Tube(((100.0, 8.0, -135.0), (104.0, 0.0, -58.0), (88.0, 52.0, -52.0)), (20.0, 20.0, 17.0)),
        varies=1.0,
    ),
    filler(
        "colon_middle",
        "muscle",
        Tube(((88.0, 52.0, -52.0), (0.0, 64.0, -70.0), (-88.0, 48.0, -42.0)), (17.0, 16.0, 16.0)),
        varies=1.0,
    ),
    filler(
        "colon_left",
        "muscle",
        Tube(((-102.0, -10.0, -32.0), (-106.0, -8.0, -110.0), (-70.0, 0.0, -150.0)), (16.0, 17.0, 16.0)),
        varies=1.0,
    ),
    filler("rectum", "muscle", Tube(((0.0, -36.0, -225.0), (0.0, -34.0, -150.0)), (18.0, 15.0)), varies=0.5),
    organ("spleen", "spleen", Ball((-102.0, -38.0, 46.0), (28.0, 45.0, 46.0), (20.0, -10.0, -15.0)), varies=1.0),
    organ(
        "kidney_right",
        "kidney",
        Tube(((54.0, -48.0, 24.0), (65.0, -47.0, -10.0), (58.0, -40.0, -42.0)), (22.0, 25.0, 22.0)),
        varies=1.0,
        halo_mm=6.0,
    ),
    organ(
        "kidney_left",
        "kidney",
        Tube(((-54.0, -48.0, 34.0), (-65.0, -47.0, 0.0), (-58.0, -40.0, -32.0)), (22.0, 25.0, 22.0)),
        varies=1.0,
        halo_mm=6.0,
    ),
    *both_sides(inner("medulla", "medulla", "kidney", 9.0)),
    organ("gallbladder", "bile", Ball((50.0, 50.0, -14.0), (18.0, 20.0, 27.0), (25.0, 0.0, 0.0)), varies=0.9),
    organ("urinary_bladder", "urine", Ball((0.0, 30.0, -170.0), (41.0, 33.0, 30.0)), varies=1.0, halo_mm=4.0),
)

_MIDLINE = (
    filler(
        "vena_cava",
        "vein",
        Tube(((20.0, -20.0, 95.0), (22.0, -22.0, -20.0), (16.0, -26.0, -100.0)), (12.0, 12.0, 11.0)),
        varies=0.4,
    ),
    organ(
        "aorta",
        "blood",
        Tube(
            (
                (6.0, 24.0, 125.0),
                (10.0, 20.0, 165.0),
                (-6.0, -6.0, 188.0),
                (-18.0, -36.0, 165.0),
                (-18.0, -34.0, 100.0),
                (-12.0, -24.0, 20.0),
                (-6.0, -20.0, -40.0),
                (-3.0, -24.0, -100.0),
            ),
            (14.0, 14.0, 13.5, 13.0, 13.0, 12.5, 12.0, 11.5),
        ),
        varies=0.4,
    ),
    Part(
        "spine",
        "bone",
        (
            Tube(
                (
                    (0.0, -66.0, -235.0),
                    (0.0, -58.0, -150.0),
                    (0.0, -50.0, -80.0),
                    (0.0, -54.0, 0.0),
                    (0.0, -64.0, 90.0),
                    (0.0, -64.0, 250.0),
                ),
                (19.0, 21.0, 20.5, 19.5, 18.0, 17.0),
            ),
            Tube(
                ((0.0, -84.0, -150.0), (0.0, -80.0, -40.0), (0.0, -88.0, 100.0), (0.0, -86.0, 250.0)),
                (9.0, 9.5, 9.0, 9.0),
            ),
        ),
        "organ",
        blend_mm=14.0,
        varies=0.3,
    ),
    inner("spine_marrow", "marrow", "spine", 3.0),
    inner("discs", "disc", "spine", 0.0, Rings(35.0, 8.0)),
)

ATLAS: tuple[Part, ...] = (*_TORSO, *_CHEST, *_ABDOMEN, *_MIDLINE)
"""All parts of the average torso; later parts cover earlier ones."""
