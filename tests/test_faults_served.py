"""What a server can break: the prompt by another template, an answer by its settings. Through a real Ollama, as links."""

from __future__ import annotations

import pytest

from tests.conftest import Server
from tests.faults.served import SERVED_FAULTS, ServedFault, served
from toolkit.parity.certificate import blame_of

pytestmark = [pytest.mark.slow, pytest.mark.ollama]


@pytest.mark.parametrize("fault", SERVED_FAULTS, ids=lambda fault: fault.name)
def test_the_server_is_blamed_in_words_that_name_the_fault(fault: ServedFault, ollama_server: Server) -> None:
    blame = blame_of([served(ollama_server.client, fault.parameters(), fault.template)])
    assert blame is not None
    assert (blame.link, blame.check, blame.measure) == (fault.link, fault.check, fault.measure), blame.message
    assert fault.says in blame.message


def test_a_right_server_is_not(ollama_server: Server) -> None:
    subject = served(ollama_server.client, {})
    assert {check.name: check.verdict for check in subject.checks} == {
        "prompts": "pass", "ends": "pass", "answers": "pass", "defaults": "pass", "strength": "pass",
    }, [check.message for check in subject.checks]  # fmt: skip
    assert subject.file_type == "Ollama 0.34.1"
