"""The metrics of worker processes in one scrape."""

from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import Metrics, ModelMetrics, merge_metrics


def test_merged_metrics_are_those_of_each_worker() -> None:
    texts = []
    for worker in (0, 1):
        metrics = Metrics(worker)
        # Text that could be mistaken for the head of a metric.
        metrics.record_request("# HELP a\n# HELP b", "GET", "200", 0.5)
        ModelMetrics(metrics, "tiny", "1").batch(worker + 3, "full")
        texts.append(metrics.render())
    merged = merge_metrics(texts).decode()
    assert merged.count("# TYPE centernet_images_total counter") == 1
    families = list(text_string_to_metric_families(merged))
    assert len({family.name for family in families}) == len(families)
    samples = [sample for family in families for sample in family.samples]
    images = [one for one in samples if one.name == "centernet_images_total"]
    assert [(one.labels, one.value) for one in images] == [
        ({"model": "tiny", "version": "1", "worker": "0"}, 3.0),
        ({"model": "tiny", "version": "1", "worker": "1"}, 4.0),
    ]
    separate = [
        sample
        for text in texts
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    ]
    assert sorted(map(repr, samples)) == sorted(map(repr, separate))


def test_one_metric_set_is_merged_unchanged() -> None:
    text = Metrics(0).render()
    assert merge_metrics([text]) == text
