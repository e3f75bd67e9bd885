import pytest

from resnext_det import Variant


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("X-50-32x4d", Variant(50, 32, 4)),
        ("X-101-64x4d", Variant(101, 64, 4)),
        ("X-200-2x40d", Variant(200, 2, 40)),
        ("X-26-8x4d", Variant(26, 8, 4)),
        ("R-152", Variant(152, 1, 64)),
    ],
)
def test_a_name_parses_and_prints_back(name, variant):
    assert Variant.parse(name) == variant
    assert str(variant) == name


def test_a_resnet_by_its_template_is_the_resnet():
    assert Variant.parse("X-50-1x64d") == Variant.parse("R-50")


@pytest.mark.parametrize(
    "name", ["X-50", "R-50-32x4d", "X-50-32x4", "x-50-32x4d", "X-50-32x4d-FPN", ""]
)
def test_another_form_is_refused_and_named(name):
    with pytest.raises(ValueError, match="expected a form such as X-50-32x4d"):
        Variant.parse(name)


def test_an_unknown_depth_names_the_known_ones():
    with pytest.raises(ValueError, match=r"depth 51 .*26, 50, 101, 152, 200"):
        Variant.parse("X-51-32x4d")


@pytest.mark.parametrize(("cardinality", "width"), [(0, 4), (32, 0), (-1, 4), (32, 4.5), ("2", 4)])
def test_cardinality_and_width_are_positive(cardinality, width):
    with pytest.raises(ValueError, match="not a positive integer"):
        Variant(50, cardinality, width)


@pytest.mark.parametrize("depth", [26, 50, 101, 152, 200])
def test_depth_counts_the_layers_with_weights(depth):
    assert 3 * sum(Variant(depth).blocks_per_stage) + 2 == depth


@pytest.mark.parametrize(
    ("cardinality", "width", "group_width"),
    [(1, 64, 64), (2, 40, 80), (4, 24, 96), (8, 14, 112), (32, 4, 128)],
)
def test_preserving_complexity_reproduces_table_2(cardinality, width, group_width):
    for start in ("R-50", "X-50-32x4d"):
        variant = Variant.parse(start).with_cardinality(cardinality)
        assert variant == Variant(50, cardinality, width)
        assert variant.bottleneck_channels == group_width
        assert variant == Variant.from_group_width(50, cardinality, group_width)


def test_eqn_4_counts_about_70_thousand_weights_as_the_paper_says():
    assert Variant(50).template_parameters == 256 * 64 + 9 * 64 * 64 + 64 * 256
    assert Variant(50, 32, 4).template_parameters == 70_144


def test_a_cardinality_that_does_not_divide_is_named_with_the_width():
    with pytest.raises(ValueError, match="cardinality 3 does not divide group width 128"):
        Variant.from_group_width(50, 3, 128)


def test_an_impossible_cardinality_is_named():
    with pytest.raises(ValueError, match="cardinality 0 is not a positive"):
        Variant(50).with_cardinality(0)
    with pytest.raises(ValueError, match="cardinality 500 leaves 0.27 channels"):
        Variant(50).with_cardinality(500)
