"""Write one of the tests' tiny models: `python tools/tiny_model.py OUT.gguf [ARCHITECTURE]`; its weights are random."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.factory import write_model

if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_model(out, *sys.argv[2:3], quant="Q8_0")
