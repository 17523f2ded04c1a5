"""The parts of a change that later workers repeat, and the one answer made of several."""

from __future__ import annotations

from itertools import permutations

from normfold.protos import grpc_service as pb
from normfold.protos import metrics as mx
from normfold.serving.catalog.entry import MADE_ROOM, NOT_LOADED, UNLOADED
from normfold.serving.errors import Status
from normfold.serving.scheduling.statistics import RequestTiming, Statistics
from normfold.serving.workers.shared_methods import changes, index, snapshot, statistics


def counted(requests: int, rows: int) -> Statistics:
    made = Statistics()
    for _ in range(requests):
        made.ran(rows, 1, 10, 2)
        made.answered(rows, 20, RequestTiming(3, 1, 10, 2))
    return made


def response(*messages: pb.ModelStatistics) -> pb.ModelStatisticsResponse:
    return pb.ModelStatisticsResponse(model_stats=messages)


def reported(*models: mx.ModelSnapshot) -> bytes:
    """What the supervisor keeps of a worker that has ended."""
    return mx.SnapshotResponse(models=models).SerializeToString()


def test_statistics_are_added_field_by_field_and_batch_size_by_batch_size():
    one = counted(2, rows=1)
    one.fail.add(7)
    others = [response(counted(3, rows=4).message("m", "1")).SerializeToString()]
    absent = [reported(counted(5, rows=1).snapshot("m", "1"))]
    (total,) = statistics(response(one.message("m", "1")), others, absent).model_stats
    assert (total.name, total.version) == ("m", "1")
    assert (total.inference_count, total.execution_count) == (2 + 3 * 4 + 5, 2 + 3 + 5)
    stats = total.inference_stats
    assert (stats.success.count, stats.success.ns) == (10, 200)
    assert (stats.fail.count, stats.fail.ns) == (1, 7)
    parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert [part.ns for part in parts] == [30, 10, 100, 20]
    assert [(each.batch_size, each.compute_infer.count, each.compute_infer.ns) for each in total.batch_stats] == [
        (1, 7, 70),
        (4, 3, 30),
    ]


def test_the_last_inference_is_the_latest_of_all():
    messages = [Statistics().message("m", "1") for _ in range(3)]
    for message, moment in zip(messages, (5, 9, 7), strict=True):
        message.last_inference = moment
    own, other, absent = messages
    (total,) = statistics(
        response(own), [response(other).SerializeToString()], [reported(mx.ModelSnapshot(statistics=absent))]
    ).model_stats
    assert total.last_inference == 9


def test_only_what_was_asked_for_is_added():
    absent = [reported(counted(5, rows=1).snapshot("other", "1"))]
    (total,) = statistics(response(counted(1, rows=1).message("m", "1")), [], absent).model_stats
    assert (total.name, total.inference_count) == ("m", 1)


def listed(*rows: tuple[str, str, str]) -> pb.RepositoryIndexResponse:
    kind = pb.RepositoryIndexResponse.ModelIndex
    return pb.RepositoryIndexResponse(models=[kind(name=n, version=v, state=s) for n, v, s in rows])


def merged(*answers: pb.RepositoryIndexResponse) -> list[tuple[str, str, str]]:
    own, *others = answers
    both = index(own, [each.SerializeToString() for each in others], [])
    return [(row.name, row.version, row.state) for row in both.models]


def test_ready_is_what_is_ready_in_every_worker():
    good, bad = listed(("m", "1", "READY")), listed(("m", "1", "UNAVAILABLE"))
    assert merged(good, good) == [("m", "1", "READY")]
    assert merged(good, bad) == merged(bad, good) == [("m", "1", "UNAVAILABLE")]


def test_what_a_worker_does_not_list_as_ready_is_not_listed_as_ready():
    ready, without = listed(("a", "1", "READY"), ("b", "1", "READY")), listed(("a", "1", "READY"))
    assert merged(ready, without) == merged(without, ready) == [("a", "1", "READY")]


def test_workers_in_which_a_request_is_still_to_load_a_model_do_not_count():
    kind = pb.RepositoryIndexResponse.ModelIndex
    asleep = pb.RepositoryIndexResponse(models=[kind(name="m", state="UNAVAILABLE", reason=NOT_LOADED)])
    unloaded = pb.RepositoryIndexResponse(models=[kind(name="m", version="1", state="UNAVAILABLE", reason=MADE_ROOM)])
    assert merged(asleep, unloaded) == merged(unloaded, asleep) == [("m", "1", "UNAVAILABLE")]
    awake, failed = listed(("m", "1", "READY")), listed(("m", "1", "UNAVAILABLE"))
    for other in (asleep, unloaded):
        assert merged(awake, other) == merged(other, awake) == [("m", "1", "READY")]
        assert merged(failed, other) == merged(other, failed) == [("m", "1", "UNAVAILABLE")]
    assert merged(asleep, asleep) == [("m", "", "UNAVAILABLE")]
    assert merged(unloaded, awake, asleep) == [("m", "1", "READY")]


def test_the_reason_of_a_version_is_the_same_through_each_worker():
    """It was that of the worker with the highest number: a worker that was replaced knew less."""
    kind = pb.RepositoryIndexResponse.ModelIndex
    rows = [("UNAVAILABLE", "bad"), ("UNAVAILABLE", UNLOADED), ("UNAVAILABLE", "also bad"), ("READY", "unchecked")]
    answers = [
        pb.RepositoryIndexResponse(models=[kind(name="m", version="1", state=state, reason=reason)])
        for state, reason in rows
    ]
    for own, *others in permutations(answers):
        (row,) = index(own, [each.SerializeToString() for each in others], []).models
        assert (row.state, row.reason) == rows[0]


def test_counters_of_a_model_that_only_another_worker_has_loaded_are_there():
    theirs = counted(3, rows=1)
    (row,) = statistics(response(), [response(theirs.message("m", "1")).SerializeToString()], []).model_stats
    assert (row.name, row.inference_count) == ("m", 3)
    other = mx.SnapshotResponse(models=[theirs.snapshot("m", "1")]).SerializeToString()
    (one,) = snapshot(mx.SnapshotResponse(), [other], [other]).models
    assert one.statistics.inference_count == 6


def test_a_question_changes_nothing():
    assert changes("TraceSetting", pb.TraceSettingRequest(model_name="m")) == []
    assert changes("LogSettings", pb.LogSettingsRequest()) == []
    assert changes("ModelStatistics", pb.ModelStatisticsRequest()) == []


def test_loading_and_unloading_a_model_replace_one_another():
    load = pb.RepositoryModelLoadRequest(model_name="m")
    unload = pb.RepositoryModelUnloadRequest(repository_name="m")  # as KServe writes it
    (loaded,) = changes("RepositoryModelLoad", load)
    (unloaded,) = changes("RepositoryModelUnload", unload)
    assert loaded == (("model", "m"), load)
    assert unloaded == (("model", "m"), unload)


def test_each_setting_is_remembered_for_itself_and_one_that_goes_back_is_forgotten():
    request = pb.TraceSettingRequest(model_name="m")
    request.settings["trace_rate"].value.append("7")
    request.settings["trace_count"].SetInParent()
    kept = dict(changes("TraceSetting", request))
    assert list(kept["trace", "m", "trace_rate"].settings) == ["trace_rate"]
    assert kept["trace", "m", "trace_count"] is None


def test_a_snapshot_sums_histograms_failures_and_calls_of_all_and_lists_the_processes_that_answer():
    one, other, gone = counted(2, rows=1), counted(3, rows=4), counted(5, rows=1)
    gone.failed(5, Status.INTERNAL)
    mine, theirs = one.snapshot("m", "1"), other.snapshot("m", "1")
    mine.waiting, theirs.waiting, mine.device = 1, 2, "cpu"
    calls = [mx.FailedCalls(method="a/B", status="INTERNAL", count=1)]
    process = mx.ProcessSnapshot
    total = snapshot(
        mx.SnapshotResponse(models=[mine], failed_calls=calls, processes=[process(worker=2)]),
        [mx.SnapshotResponse(models=[theirs], failed_calls=calls, processes=[process(worker=1)]).SerializeToString()],
        [mx.SnapshotResponse(models=[gone.snapshot("m", "1")]).SerializeToString(),
         mx.SnapshotResponse(failed_calls=calls).SerializeToString()],
    )  # fmt: skip
    (model,) = total.models
    assert (sum(model.request.counts), model.request.counts[5], model.infer.counts[4]) == (10, 10, 10)
    assert (model.waiting, model.device, dict(model.failures)) == (3, "cpu", {"INTERNAL": 1})
    assert model.statistics.inference_stats.success.count == 10
    assert [(row.method, row.status, row.count) for row in total.failed_calls] == [("a/B", "INTERNAL", 3)]
    assert [each.worker for each in total.processes] == [1, 2]


def test_a_model_that_one_worker_has_unloaded_and_another_has_never_loaded_is_listed_once():
    kind = pb.RepositoryIndexResponse.ModelIndex
    unloaded, skipped, unknown = (
        pb.RepositoryIndexResponse(models=[kind(name="m", version=version, state=state, reason=reason)])
        for version, state, reason in (("1", "UNAVAILABLE", UNLOADED), ("", "UNAVAILABLE", UNLOADED), ("", "", ""))
    )
    for other in (skipped, unknown):
        assert merged(unloaded, other) == merged(other, unloaded) == [("m", "1", "UNAVAILABLE")]
    assert merged(skipped, skipped) == [("m", "", "UNAVAILABLE")]
