"""What is replaced of Ray Tune is put back; test_driver.py has the effect on a search."""

from ray.tune.execution import class_cache, tune_controller

from tune_softmax.cluster.fast_start.kept_workers import in_running_workers, keeping_idle_workers


def test_ray_tune_is_left_as_it_was():
    """What is replaced for a search is its own again afterwards."""
    before = tune_controller._ObjectCache
    with keeping_idle_workers():
        assert tune_controller._ObjectCache is not before
    assert tune_controller._ObjectCache is before


def test_ray_tunes_variables_come_back():
    """Trials of others get their variables again."""
    names = ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE")
    before = [getattr(class_cache, name).copy() for name in names]
    with in_running_workers():
        assert not any(getattr(class_cache, name) for name in names)
    assert [getattr(class_cache, name) for name in names] == before
    assert all(before)
