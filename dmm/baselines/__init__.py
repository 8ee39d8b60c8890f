"""The models that Decision MetaMamba is compared with, one file each, all behind `dmm.policy.Policy`."""
