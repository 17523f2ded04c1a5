from __future__ import annotations

import onnxruntime

from normfold.export.forms.machine import Machine, this_machine


def test_the_machine_is_its_processor_its_onnxruntime_and_the_threads_that_ran() -> None:
    here = this_machine()
    assert here.processor
    assert here.onnxruntime == onnxruntime.__version__
    assert (here.providers, here.threads) == (("CPUExecutionProvider",), 1)
    assert str(Machine("A CPU", "1.32.0", (), 1)) == "A CPU, onnxruntime 1.32.0, 1 thread"
    assert str(Machine("A CPU", "1.32.0", (), 4)).endswith("4 threads")
