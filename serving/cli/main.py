"""The `lethe` command: serve, forget, cancel, retry, status, top, releases, rollback, restore,
suspend, resume, predict, pretrain, demo.

Other modules add their commands to `app`: `serving.cli.registry` and `serving.cli.erasure` those
that work on the registry's files without a server, `serving.cli.bench` benchmarks, and
`serving.cli.config` settings.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from serving.cli import bench as bench_cli
from serving.cli import config as config_cli
from serving.cli import erasure as erasure_cli
from serving.cli import registry as registry_cli
from serving.cli import show
from serving.cli.terminal import Config, Json, err, fail, out, plain_errors, print_json
from serving.client import Client, ClientError, InferenceClient, read_images
from serving.config.home import home_of, token
from serving.config.settings import Settings, is_url
from serving.config.sources import load_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve a vision model that can forget.",
)
Url = Annotated[
    str | None, typer.Option("--url", envvar="LETHE_OPERATOR_URL", help="URL of the operator API")
]
InferenceUrl = Annotated[
    str | None, typer.Option("--url", envvar="LETHE_URL", help="URL of inference")
]
Reason = Annotated[str, typer.Option("--reason", help="goes into the ledger; name nobody")]
Key = Annotated[
    str | None, typer.Option("--key", help="idempotency key: one key is carried out once")
]
Port = Annotated[int | None, typer.Option("--port", help="port to serve on")]
Replicas = Annotated[int | None, typer.Option("--replicas", help="number of replicas")]


def _client(config: Path | None, url: str | None) -> Client:
    settings = load_settings(config)
    home = home_of(settings)
    return Client(url or settings.operator_url, token(home, "operator"))


@app.command()
def serve(
    registry: Annotated[
        str | None, typer.Option("--registry", help="a folder, or s3://, gs://, az://")
    ] = None,
    config: Config = None,
    port: Port = None,
    replicas: Replicas = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="auto, torch, torch-compiled or onnxruntime")
    ] = None,
    ingress: Annotated[
        str | None, typer.Option("--ingress", help="python or haproxy: the proxy for requests")
    ] = None,
) -> None:
    """Start Ray and the application on this machine, and serve until interrupted."""
    with plain_errors():
        if registry is not None and not is_url(registry):
            registry = str(Path(registry).absolute())
        settings = load_settings(
            config,
            port=port,
            replicas=replicas,
            registry=registry,
            engine=None if engine is None else {"name": engine},
            ingress=ingress,
        )
        from serving.app import running
        from serving.cluster.local import check_ports, interrupted

        check_ports(settings)
        _prepare(settings)
        notes: list[str] = []
        with contextlib.ExitStack() as stack:
            with show.working(err, f"starting Ray and {settings.replicas} replicas"):
                stack.enter_context(running(settings, notes.append))
            ended = interrupted()
            for line in notes:
                out.print(line, highlight=False)
            out.print(f"serving on {settings.url}  (docs: {settings.url}/docs)", highlight=False)
            out.print(f"console: {settings.operator_url}/console", highlight=False)
            sys.stdout.flush()
            ended.wait()
            err.print("stopping")
        interrupted()  # `running` has put the handlers back, and Ctrl-C comes twice at times


def _prepare(settings: Settings) -> None:
    """Do the work of a first start, with a progress bar for training the embedded default."""
    from serving.app import prepare

    with show.pretraining(err) as note:
        prepare(settings, note)


@app.command()
def forget(
    classes: Annotated[list[str], typer.Argument(help="classes to forget")],
    wait: Annotated[
        bool, typer.Option("--wait", help="wait until the weights have forgotten")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="folder of images of the class, if it is only one"),
    ] = None,
    canary: Annotated[
        str | None,
        typer.Option("--canary", help="try it on this share of requests first: 10%"),
    ] = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="train as one task with other --batch forgets that wait")
    ] = False,
    key: Key = None,
    reason: Reason = "",
    config: Config = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Forget classes: mask them on every replica at once, then train them out of the weights."""
    with plain_errors(), _client(config, url) as client:
        if images is not None and len(classes) > 1:
            fail("--images holds images of one class: name only that class")
        if batch and canary is not None:
            fail("a release on trial is trained alone: leave out --batch or --canary")
        given = {} if images is None else {classes[0]: read_images(images)}
        share = percentage(canary)
        job = client.forget(
            classes, reason=reason, images=given, canary=share, batch=batch, key=key
        )
        if not as_json:
            show.accepted(out, job)
        _to_its_end(client, job, wait=wait, as_json=as_json)


def _to_its_end(client: Client, job: dict[str, Any], *, wait: bool, as_json: bool) -> None:
    """Follow a job if `wait`, and print how it ended. Exits with 1 if it failed."""
    if wait:
        guard = job.get("guard")
        with show.training(err, quiet=as_json) as note:
            job = {**client.wait(job["job"], note), "guard": guard}
        if not as_json:
            show.ended(out, job, client.report(job["job"]) if job["report"] else None)
    if as_json:
        print_json(job)
    if job["state"] == "cancelled":
        fail(f"cancelled, the class stays masked: {job['refused']}")
    if job["state"] == "refused":
        fail(f"refused, the class stays masked: {job['refused']}")


def percentage(share: str | None) -> int | None:
    """The whole percentage in a share such as `10%` or `10`. Raises `ClientError` unless it is 1 to
    99."""
    if share is None:
        return None
    text = share.strip().removesuffix("%")
    if not text.isdecimal() or not 1 <= int(text) <= 99:
        raise ClientError(f"--canary is {share!r}; expected a share from 1% to 99%")
    return int(text)


@app.command()
def status(config: Config = None, url: Url = None, as_json: Json = False) -> None:
    """Show what is served, what is forgotten, and which release each replica runs."""
    with plain_errors(), _client(config, url) as client:
        answer = client.status()
        print_json(answer) if as_json else show.status(out, answer)


@app.command()
def top(
    every: Annotated[float, typer.Option("--every", min=0.2, help="seconds between updates")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="show once and end")] = False,
    config: Config = None,
    url: Url = None,
) -> None:
    """Show live numbers: traffic, evidence, replicas, running jobs. Ends with Ctrl-C."""
    with plain_errors(), _client(config, url) as client:
        from serving.cli.top import watch

        watch(client, out, every=every, looks=1 if once else None)


@app.command()
def releases(config: Config = None, url: Url = None, as_json: Json = False) -> None:
    """List every release, oldest first."""
    with plain_errors(), _client(config, url) as client:
        rows = client.releases()
        print_json(rows) if as_json else show.releases(out, rows)


@app.command()
def rollback(
    release: Annotated[int, typer.Argument(help="release whose adapters to serve again")],
    reason: Reason = "",
    config: Config = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Serve an earlier release's adapters again. What is under erasure stays masked."""
    with plain_errors(), _client(config, url) as client:
        ack = client.rollback(release, reason=reason)
        print_json(ack) if as_json else show.rolled_back(out, ack)


@app.command()
def restore(
    whom: Annotated[
        str, typer.Argument(metavar="CLASS|SUBJECT", help="class whose erasure ends, or its id")
    ],
    reason: Reason,
    config: Config = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """End an erasure: the class is recognised again. Adapters above its own are trained again."""
    with plain_errors(), _client(config, url) as client:
        if erasure_cli.SUBJECT_ID.fullmatch(whom):
            ack = client.restore(subject=whom, reason=reason)
        else:
            ack = client.restore(whom, reason=reason)
        print_json(ack) if as_json else show.restored(out, ack)


@app.command()
def cancel(
    job: Annotated[str, typer.Argument(help="job to cancel, e.g. job-3")],
    reason: Reason,
    config: Config = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Stop training a forget job. Its classes stay masked and under erasure."""
    with plain_errors(), _client(config, url) as client:
        answer = client.cancel(job, reason=reason)
        print_json(answer) if as_json else show.cancelled(out, answer)


@app.command()
def retry(
    job: Annotated[str, typer.Argument(help="refused or cancelled job, e.g. job-3")],
    reason: Reason,
    wait: Annotated[
        bool, typer.Option("--wait", help="wait until the weights have forgotten")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="folder of more images, if the job has one class"),
    ] = None,
    key: Key = None,
    config: Config = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Train a refused or cancelled job again, with another seed and, if given, more images."""
    with plain_errors(), _client(config, url) as client:
        given = {}
        if images is not None:
            classes = client.job(job)["classes"]
            if len(classes) > 1:
                fail(f"--images holds images of one class: {job} has {len(classes)}")
            given = {classes[0]: read_images(images)}
        answer = client.retry(job, reason=reason, images=given, key=key)
        if not as_json:
            show.retried(out, answer)
        _to_its_end(client, answer, wait=wait, as_json=as_json)


@app.command()
def suspend(reason: Reason, config: Config = None, url: Url = None, as_json: Json = False) -> None:
    """Stop all predictions. When this ends, no replica answers any until `lethe resume`."""
    with plain_errors(), _client(config, url) as client:
        answer = client.suspend(reason=reason)
        print_json(answer) if as_json else show.suspended(out, answer)


@app.command()
def resume(reason: Reason, config: Config = None, url: Url = None, as_json: Json = False) -> None:
    """Answer predictions again."""
    with plain_errors(), _client(config, url) as client:
        answer = client.resume(reason=reason)
        print_json(answer) if as_json else show.resumed(out, answer)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="image files")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="labels to show")] = 3,
    config: Config = None,
    url: InferenceUrl = None,
    as_json: Json = False,
) -> None:
    """Classify images."""
    with plain_errors():
        settings = load_settings(config)
        with InferenceClient(url or settings.url) as client:
            answers = [
                {"image": str(path), **client.predict_file(path, top_k=top_k)} for path in images
            ]
        print_json(answers) if as_json else show.predictions(out, answers)


@app.command()
def pretrain(
    data: Annotated[
        str, typer.Option("--data", help="'digits', a pack, or one sub-folder per class")
    ],
    to: Annotated[Path, typer.Option("--out", help="folder to write the backbone to")],
    model: Annotated[
        str | None, typer.Option("--model", help="name of a timm ViT [a small one]")
    ] = None,
    model_args: Annotated[
        str, typer.Option("--model-args", help="""arguments of the model as JSON, '{"depth": 4}'""")
    ] = "{}",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="training steps")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    as_json: Json = False,
) -> None:
    """Train a backbone from scratch on an image folder."""
    with plain_errors():
        from serving.cli.pretraining import pretrain_backbone, read_model_args

        arguments = read_model_args(model_args)
        with show.pretraining(err) as note:
            result = pretrain_backbone(
                data, to, model=model, model_args=arguments, steps=steps, seed=seed, note=note
            )
        print_json(result) if as_json else show.pretrained(out, result)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="go on serving afterwards")] = False,
    config: Config = None,
    port: Port = None,
    as_json: Json = False,
) -> None:
    """Forget two classes under live traffic and roll back, with every figure measured."""
    with plain_errors():
        settings = load_settings(config, port=port)
        from serving.cli.demo import run_demo

        summary = run_demo(settings, Console(quiet=True) if as_json else out, keep=keep)
        if as_json:
            print_json(summary)


registry_cli.add_to(app)
config_cli.add_to(app)
erasure_cli.add_to(app)
bench_cli.add_to(app)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
