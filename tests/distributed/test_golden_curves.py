from tests.support.curves import check_curves


def test_two_workers_give_the_committed_curves(tmp_path):
    check_curves(2, tmp_path)
