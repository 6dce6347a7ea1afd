# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys


def test_reading_data_loads_none_of_the_heavy_libraries():
    code = (
        "import sys; import metarm.data.meta_sets, metarm.data.preferences; "
        "print({'torch', 'trl', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
