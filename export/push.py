"""``rsrefseg push``: uploads a bundle or a run to the Hugging Face hub, with a model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.manifest import MANIFEST_NAME
from rsrefseg.engines.errors import BadInputError, MissingPartError, RSRefSegError
from rsrefseg.engines.hub.fetch import NAME, SUMS_NAME, hub_library
from rsrefseg.engines.system.files import sha256_file
from rsrefseg.engines.system.progress import ProgressLine
from rsrefseg.runs.run import Run, latest_run
from rsrefseg.train.metrics_log import read_metrics

from .model_card import CARD_NAME, CardFacts, Score, model_card, recorded_scores, score_of

_HEADER = "rsrefseg"


@dataclass(frozen=True)
class PushReport:
    """Where a folder was uploaded.

    Attributes:
        kind: ``bundle`` or ``run``.
        address: address that ``--bundle`` and ``--run`` take.
        url: page of the repository.
        commit: commit of the upload.
        files: names of the uploaded files.
        size_bytes: their size without the card.
    """

    kind: str
    address: str
    url: str
    commit: str
    files: tuple[str, ...]
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return asdict(self)

    def render(self) -> str:
        """Return the address, the size and the way to use it as text."""
        use = f'rsrefseg infer IMAGE "PHRASE" --bundle {self.address}'
        if self.kind == "run":
            use = f"rsrefseg export {self.address}"
        size = f"{len(self.files)} files, {self.size_bytes / 1e6:,.1f} MB"
        return f"{self.url}: the {self.kind}, {size}\nuse it with: {use}\nthis state: {self.address}@{self.commit}"


def push(
    folder: Path, name: str, run: Path | None = None, scores: Sequence[Path] = (), private: bool = False
) -> PushReport:
    """Upload a bundle or a run in one commit, and make the repository if there is none.

    Of a run, the merged model, its tokenizer, reference inputs and records are uploaded, but no checkpoints. Every file
    is checked before anything is sent.

    Args:
        folder: bundle or run.
        name: repository, ``ORG/NAME``.
        run: run that the bundle was exported from, for the card; by default the latest run, if it is that one.
        scores: files with the JSON of ``rsrefseg eval --json``, for the card.
        private: make a new repository private.

    Raises:
        BadInputError: the name is wrong, the folder is neither, the run is not merged, or ``run`` or ``scores`` belong
            to another model.
        BundleError: the bundle is incomplete or damaged.
        MissingPartError: the hub cannot be reached, or ``huggingface_hub`` is not installed.
        RSRefSegError: the hub refuses the upload.
    """
    if NAME.fullmatch(name) is None:
        raise BadInputError(f"'{name}' is not the name of a repository: write ORG/NAME")
    hub_library()
    if (folder / MANIFEST_NAME).is_file():
        kind, files, facts = "bundle", *_bundle(folder, name, run, scores)
    elif (folder / "run.json").is_file():
        if run is not None:
            raise BadInputError("--run names the run of a bundle, but a run is pushed: leave it out")
        kind, files, facts = "run", *_run(Run(folder), name, scores)
    else:
        raise BadInputError(f"'{folder}' is neither a bundle ({MANIFEST_NAME}) nor a run (run.json)")
    texts = {CARD_NAME: model_card(facts)}
    if kind == "run":
        texts[SUMS_NAME] = "".join(f"{digest}  {file}\n" for file, digest in facts.digests.items())
    size_bytes = sum(path.stat().st_size for path in files)
    ProgressLine("push").say(f"uploading {len(files)} files, {size_bytes / 1e6:,.1f} MB, to '{name}'")
    url, commit = _upload(name, files, texts, private, f"Upload a {kind} with rsrefseg")
    names = (*(path.name for path in files), *texts)
    return PushReport(kind, f"hf://{name}", url, commit, names, size_bytes)


def _bundle(folder: Path, name: str, path: Path | None, scores: Sequence[Path]) -> tuple[list[Path], CardFacts]:
    """Return the verified files of a bundle and the facts of its card."""
    bundle = Bundle.open(folder)
    files = [bundle.verified_path(record.name) for record in bundle.manifest.files]
    digests = {record.name: record.sha256 for record in bundle.manifest.files}
    checkpoint, random = bundle.manifest.provenance.checkpoint_sha256, bundle.manifest.provenance.random_weights
    run = _exported_from(bundle, path)
    models, found, record = {checkpoint}, [], None
    if run is not None:
        record = run.read_record()
        source = _merged_header(run).get("source", {})
        models.add(source.get("run_best_sha256"))
        found = recorded_scores(run.path, record, read_metrics(run.metrics_path), source.get("step"))
    found += _given_scores(scores, models, bundle)
    return [*files, folder / MANIFEST_NAME], CardFacts(name, bundle, record, found, digests, random)


def _exported_from(bundle: Bundle, path: Path | None) -> Run | None:
    """Return the run whose merged model was exported; by default the latest, or None if it is not that one."""
    try:
        run = Run(path) if path is not None else latest_run()
    except BadInputError:
        return None
    checkpoint = bundle.manifest.provenance.checkpoint_sha256
    if run.merged_path.is_file() and sha256_file(run.merged_path) == checkpoint:
        return run
    if path is not None:
        raise BadInputError(f"the bundle '{bundle.root}' was not exported from '{path}': name the right run with --run")
    return None


def _run(run: Run, name: str, scores: Sequence[Path]) -> tuple[list[Path], CardFacts]:
    """Return the files of a merged run and the facts of its card."""
    record = run.read_record()
    header = _current_header(run)
    records = (run.record_path, run.metrics_path, run.presence_path)
    paths = (*records, run.tokenizer_path, run.reference_inputs_path, run.merged_path)
    files = [path for path in paths if path.is_file()]
    digests = {path.name: sha256_file(path) for path in files}
    source = header.get("source", {})
    found = recorded_scores(run.path, record, read_metrics(run.metrics_path), source.get("step"))
    found += _given_scores(scores, {digests[run.merged_path.name], source.get("run_best_sha256")})
    return files, CardFacts(name, None, record, found, digests, header.get("random_weights") is True)


def _current_header(run: Run) -> dict[str, Any]:
    """Return the header of the run's merged model; raise BadInputError if it is missing or older than the run."""
    if not run.merged_path.is_file():
        raise BadInputError(f"'{run.path}' has no merged model: run `rsrefseg merge {run.path}` first")
    header = _merged_header(run)
    merged_from = header.get("source", {}).get("run_best_sha256")
    if run.best_path.is_file() and merged_from != sha256_file(run.best_path):
        raise BadInputError(f"'{run.path}' was trained after its merge: run `rsrefseg merge {run.path}` again")
    return header


def _merged_header(run: Run) -> dict[str, Any]:
    try:
        with safe_open(run.merged_path, framework="np") as file:
            return dict(json.loads((file.metadata() or {}).get(_HEADER, "{}")))
    except Exception as error:  # safetensors raises its own error
        raise BadInputError(f"'{run.merged_path}' is damaged: run `rsrefseg merge {run.path}` again") from error


def _given_scores(paths: Sequence[Path], models: set[str | None], bundle: Bundle | None = None) -> list[Score]:
    """Read the JSON of evaluations of the model with one of the digests ``models``, or of the pushed ``bundle``."""
    scores = []
    for path in paths:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            score = score_of(document, Path(document["data"]).name, str(document["split"]))
            model_sha256, bundle_sha256 = document.get("model_sha256"), document.get("bundle_sha256")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInputError(f"'{path}' is not the output of `rsrefseg eval --json` ({error})") from error
        # A bundle's scores depend on its precision, so they are not those of another bundle of the model.
        is_other_bundle = bundle is not None and bundle_sha256 not in (None, bundle.digest)
        if is_other_bundle or model_sha256 is None or model_sha256 not in models:
            raise BadInputError(f"'{path}' has the scores of another model: evaluate this one again")
        if document.get("phrases") == "shuffled":
            raise BadInputError(f"'{path}' has the scores of shuffled phrases: evaluate without --shuffle-phrases")
        scores.append(score)
    return scores


def _upload(name: str, files: Sequence[Path], texts: Mapping[str, str], private: bool, message: str) -> tuple[str, str]:
    """Upload all files in one commit; return the page of the repository and the commit."""
    hub = hub_library()
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = hub.HfApi()
    additions = [hub.CommitOperationAdd(path.name, path) for path in files]
    additions += [hub.CommitOperationAdd(file, text.encode()) for file, text in texts.items()]
    try:
        url = api.create_repo(name, private=private or None, exist_ok=True)
        return str(url), str(api.create_commit(name, additions, commit_message=message).oid)
    except HFValidationError as error:
        raise BadInputError(f"'{name}' is not a name on the hub: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "log in with `hf auth login`, with a token that may write" if status in (401, 403, 404) else "try again"
        raise RSRefSegError(f"the hub refused the upload to '{name}' (status {status}): {hint}") from error
    except Exception as error:  # without a network, the HTTP client raises errors of its own classes
        raise MissingPartError(
            f"'{name}' cannot be uploaded: the hub cannot be reached ({type(error).__name__}); check the network"
        ) from error
