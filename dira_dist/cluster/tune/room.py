"""How many trials a cluster holds at once."""

from dira_dist.cluster.fit.evaluation_gpu import gpus_for_evaluation
from dira_dist.cluster.session import cluster_grows, gpus_per_worker, live_nodes
from dira_dist.config import RequestError
from dira_dist.jobs.base import TrainingJob
from dira_dist.search.fitting import ResourceRequest, trials_that_fit


def at_once(job: TrainingJob, asked: int | None, most: int, *, key: str, member: str) -> int:
    """How many trials run at once.

    Args:
        job: that each of them is, its evaluations' GPU included.
        asked: how many are wanted; as many as fit where left out.
        most: as many as there are.
        key: of the job file, where ``asked`` stands.
        member: what trials are called, in the plural.

    Raises:
        RequestError: if the cluster does not hold one, or not as many as asked for, or if it is autoscaled and the job
            gives no number.
    """
    if cluster_grows():
        return min(_asked_of_a_growing_cluster(asked, key, member), most)
    sizes = [node.size for node in live_nodes()]
    resources, evaluating = job.resources, gpus_for_evaluation(job)
    requests = [ResourceRequest(resources.cpus_per_worker, gpus_per_worker(resources))] * resources.max_workers
    fit = trials_that_fit(sizes, [*requests, *[ResourceRequest(0, evaluating)] * bool(evaluating)])
    if fit == 0 or (asked or 0) > fit:
        room = ", ".join(f"{cpus:g} CPUs and {gpus} GPUs" for cpus, gpus in sizes)
        each = f"{len(requests)} workers with {requests[0].cpus:g} CPUs and {requests[0].gpus:g} GPUs"
        each += " and one more for evaluation.device" if evaluating else ""
        remedy = f"lower it to {fit} or leave it out" if fit else "lower base.resources, or use a larger cluster"
        raise RequestError(
            f"{key}: {asked or 1} {member} of {each} are asked for at once, and {fit} fit into this Ray "
            f"(nodes: {room}); {remedy}"
        )
    return min(asked or fit, most)


def _asked_of_a_growing_cluster(asked: int | None, key: str, member: str) -> int:
    """An autoscaler makes room for what is asked for, and does not say for how much."""
    if asked is None:
        raise RequestError(
            f"{key}: left out, and this cluster grows with what is asked of it; say how many {member} may run at once"
        )
    return asked
