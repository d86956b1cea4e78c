"""The project's requirements, one a line, from its pyproject.toml: what an image installs before the project itself.

python requirements.py pyproject.toml [EXTRA ...]
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
extras = [name for extra in sys.argv[2:] for name in project["optional-dependencies"][extra]]
print(*project["dependencies"], *extras, sep="\n")
