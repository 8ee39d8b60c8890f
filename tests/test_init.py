import subprocess
import sys

import dmm


def test_every_public_name_is_there():
    assert set(dmm.__all__) == set(dmm._HOME)
    for name in dmm.__all__:
        assert getattr(dmm, name).__name__ == name


def test_modules_are_there_without_an_import_of_their_own():
    code = "import dmm; dmm.ssm.s4d_real(2); dmm.policy.Policy; dmm.layers"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there():
    assert not hasattr(dmm, "selective_skan")


def test_import_is_light():
    code = "import sys, dmm, dmm.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
