"""Models that change under load: every answer is that of one version, and what is damaged changes nothing."""

from __future__ import annotations

from tests.reliability.reloads import FILES, damage_files, swap_versions
from tests.reliability.servers import serving, write_repository


def test_versions_that_come_and_go_and_damaged_files_lose_nothing(tmp_path, frontend, times):
    repository = write_repository(tmp_path)
    with serving(repository, "--frontend", frontend) as server:
        swapped = swap_versions(server, repository, 3 * times)
        assert swapped.lost == []
        assert swapped.right == swapped.sent
        assert swapped.refused == swapped.cut == 0
        damage = damage_files(server, repository, 2 * len(FILES) * times)
        assert damage.outcomes.lost == []
        assert damage.outcomes.right == damage.outcomes.sent
        assert damage.outcomes.refused == damage.outcomes.cut == 0
        assert damage.refused
        assert all(why and "\n" not in why for why in damage.sentences)
