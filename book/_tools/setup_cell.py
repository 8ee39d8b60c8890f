"""The first code cell of every notebook, kept in one place; a test compares each notebook with it."""

SETUP_CELL = """\
# On Colab this installs the package; elsewhere it is already there.
import subprocess
import sys

if "google.colab" in sys.modules:
    address = "https://github.com/OWNER_NAME/decision-metamamba"
    if "OWNER_NAME/" in address:
        raise SystemExit("This copy has no public address yet, so Colab cannot install it.")
    install = [sys.executable, "-m", "pip", "install", "--quiet", f"git+{address}"]
    subprocess.run(install, check=True)"""

# A plain link and no badge image: the built site asks no other host for anything.
COLAB_LINK = (
    "[Open this chapter in Colab]"
    "(https://colab.research.google.com/github/OWNER_NAME/decision-metamamba/blob/main/notebooks/{name})"
)
