"""``medvl-export``: from a checkpoint to a repository that Triton serves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from medvl.contracts.checkpoint import CHECKPOINT_FILE, load_checkpoint
from medvl.contracts.engines import EngineBuilder, Precision, this_machine
from medvl.contracts.errors import CheckpointError, InvalidRequest, MedvlError, ParityError, SetupError
from medvl.contracts.manifest import Target, require_machine, verify_repository
from medvl.contracts.quantisation import Quantisation
from medvl.export.engine_options import EngineOptions
from medvl.export.folders import locked, replacement, target_of
from medvl.export.importing.options import Sources
from medvl.export.presets import PRESETS, SPECS, resolve_checkpoint, resolve_spec, spec_text

if TYPE_CHECKING:
    from medvl.embedded.phantom import Phantom

# Commands import what needs torch when they run: --help, and a build with nothing to do, answer at once.
# ruff: noqa: PLC0415


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``medvl-export``; return the exit status, 1 after an error that stands on standard error."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except MedvlError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        if error.strerror is None:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"{where}{error.strerror}.\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medvl-export", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_build(commands.add_parser("build", help="build the repository of a checkpoint"))
    _add_prove_rtx(commands.add_parser("prove-rtx", help="build every graph with TensorRT-RTX, which needs no GPU"))
    _add_import(commands.add_parser("import", help="make a checkpoint folder of public weights"))
    _add_spec(commands.add_parser("spec", help="print what a checkpoint has to be told, to be edited"))
    _add_check(commands.add_parser("check", help="prove a checkpoint folder against the contract"))
    _add_quantise(commands.add_parser("quantise", help="write the language model of a checkpoint in INT8"))
    _add_verify(commands.add_parser("verify", help="prove a repository against its manifest"))
    _add_phantom(commands.add_parser("phantom", help="write procedural CT series with label map and truth"))
    _add_train(commands.add_parser("train-phantom", help="train the phantom checkpoint, in pieces as long as you like"))
    _add_evaluate(commands.add_parser("evaluate", help="measure a checkpoint on phantoms that no training has seen"))
    _add_ladder(commands.add_parser("ladder", help="compare every part in every precision that this machine has"))
    return parser


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_build)
    presets = ", ".join(PRESETS)
    parser.add_argument("--checkpoint", required=True, metavar="FOLDER|PRESET", help=f"folder, or one of: {presets}")
    parser.add_argument(
        "--quantised", type=Path, metavar="FOLDER", help="its language model in fewer bits, to be served in its place"
    )
    parser.add_argument("--target", choices=get_args(Target), default="cpu", help="what the networks become (cpu)")
    parser.add_argument("--out", required=True, type=Path, metavar="REPOSITORY", help="folder to make or replace")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    engines = parser.add_argument_group("engines (--target tensorrt)")
    engines.add_argument("--builder", choices=get_args(EngineBuilder), help="TensorRT's own ONNX parser, or (onnx)")
    engines.add_argument("--precision", choices=get_args(Precision), help="fp16: where it holds its gate (fp16)")
    engines.add_argument(
        "--version-compatible", action="store_true", default=None, help="also load in a newer TensorRT, if slower"
    )
    _add_limits(engines)


def _add_limits(parser: argparse._ActionsContainer) -> None:
    defaults = EngineOptions()
    parser.add_argument(
        "--time-limit-s", type=float, metavar="S", help=f"of one engine's build ({defaults.time_limit_s:g})"
    )
    parser.add_argument(
        "--memory-limit-gib", type=float, metavar="GIB", help=f"of host memory for it ({defaults.memory_limit_gib:g})"
    )


def _engine_options(options: argparse.Namespace) -> EngineOptions:
    """Return the engine options of a command line, defaults where nothing was given."""
    names = [field.name for field in fields(EngineOptions)]
    given = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    if given and getattr(options, "target", "tensorrt") != "tensorrt":
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InvalidRequest(f"{flags} would have no effect on ONNX graphs: give --target tensorrt, or leave it out.")
    if given.get("builder") == "torch-tensorrt":
        given.setdefault("precision", "fp32")
    return EngineOptions(**given)


def _build(options: argparse.Namespace) -> None:
    from medvl.export.build import build_repository

    folder = resolve_checkpoint(options.checkpoint)
    engines = _engine_options(options)
    result = build_repository(folder, options.target, options.out, _progress, engines, quantised=options.quantised)
    if options.json:
        fields = {
            "repository": str(result.repository),
            "checkpoint": result.manifest.checkpoint,
            "checkpoint_digest": result.manifest.checkpoint_digest,
            "trained": result.manifest.trained,
            "target": result.manifest.target,
            "quantisation": _bits(result.manifest.quantisation),
            "built": result.built,
            "steps": [asdict(step) for step in result.steps],
        }
        sys.stdout.write(json.dumps(fields) + "\n")
    else:
        sys.stdout.write(f"{result.repository} {'built' if result.built else 'is up to date'}\n")


def _bits(quantisation: Quantisation | None) -> dict[str, object] | None:
    """Return what is said of a quantised language model, its files aside."""
    return None if quantisation is None else quantisation.model_dump(mode="json", exclude={"files"})


def _add_prove_rtx(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_prove_rtx)
    source = parser.add_mutually_exclusive_group(required=True)
    presets = ", ".join((*PRESETS, *SPECS))
    source.add_argument("--checkpoint", metavar="FOLDER|PRESET", help=f"export its graphs: folder, or one of {presets}")
    source.add_argument("--repository", type=Path, help="take the ONNX graphs of a repository as they are")
    parser.add_argument("--graphs", metavar="MODEL,...", help="of these models (all)")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="fp16: by AutoCast (fp32)")
    _add_limits(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _prove_rtx(options: argparse.Namespace) -> None:
    from medvl.export.rtx import exported_graphs, prove, repository_graphs, table

    engines = _engine_options(options)
    names = options.graphs.split(",") if options.graphs else None
    if options.repository:
        graphs = repository_graphs(options.repository, names)
    else:
        graphs = exported_graphs(options.checkpoint, names)
    report = prove(graphs, engines, _progress)
    sys.stdout.write(report.model_dump_json(indent=2) + "\n" if options.json else table(report))
    report.require()


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_import)
    add, specs = parser.add_argument, ", ".join(SPECS)
    add(
        "--spec", required=True, metavar="FILE|NAME", help=f"what checkpoint.json is to say: a file, or one of: {specs}"
    )
    add(
        "--med3dvlm",
        required=True,
        type=Path,
        metavar="FOLDER|FILE",
        help="vision tower, projector and language model: a transformers folder, or a state dict with adapters",
    )
    add("--sam2", type=Path, metavar="FILE", help="SAM2, SAM2.1 or MedSAM2, unless --med3dvlm holds it")
    add("--seg-projector", type=Path, metavar="FILE", help="text_hidden_fcs, unless --med3dvlm holds it")
    add("--lora", type=Path, metavar="FOLDER", help="PEFT adapter of the language model, to be merged")
    add("--lora-alpha", type=float, metavar="ALPHA", help="of adapters inside --med3dvlm, which does not say it")
    add("--language", type=Path, metavar="FOLDER", help="configuration and tokenizer, where --med3dvlm is a file")
    add("--leave", action="append", default=[], metavar="PATTERN", help="leave out tensors of such names; repeatable")
    add("--out", required=True, type=Path, metavar="FOLDER", help="checkpoint folder to make or replace")
    add("--json", action="store_true", help="print the result as JSON")


def _import(options: argparse.Namespace) -> None:
    from medvl.export.importing.importer import import_checkpoint

    sources = Sources(
        med3dvlm=options.med3dvlm,
        sam2=options.sam2,
        seg_projector=options.seg_projector,
        lora=options.lora,
        language=options.language,
        lora_alpha=options.lora_alpha,
        leave=tuple(options.leave),
    )
    result = import_checkpoint(sources, resolve_spec(options.spec), options.out, _progress)
    if options.json:
        fields = {
            "folder": str(result.folder),
            "checkpoint": result.checkpoint.name,
            "checkpoint_digest": result.checkpoint.digest,
            "written": result.written,
        }
        sys.stdout.write(json.dumps(fields) + "\n")
    else:
        sys.stdout.write(f"{result.folder} {'written' if result.written else 'is up to date'}\n")


def _add_spec(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_spec)
    parser.add_argument("name", metavar="NAME", help=f"one of: {', '.join(SPECS)}")


def _spec(options: argparse.Namespace) -> None:
    sys.stdout.write(spec_text(options.name))


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_check)
    parser.add_argument("folder", type=Path, help="checkpoint folder")
    parser.add_argument("--json", action="store_true", help="print the mismatches as JSON")
    parser.add_argument("--vllm", action="store_true", help="also prove that vLLM answers as transformers does")
    parser.add_argument(
        "--quantised", type=Path, metavar="FOLDER", help="with --vllm: language model that vLLM reads in its place"
    )


def _check(options: argparse.Namespace) -> None:
    if options.quantised and not options.vllm:
        raise InvalidRequest("--quantised names a transformers folder that vLLM is to read: give --vllm with it.")
    if options.vllm:
        from medvl.serving.engine_settings import prepare_process

        prepare_process()
    from medvl.export.check import mismatches

    lines = mismatches(options.folder)
    if options.quantised and not lines:
        from medvl.export.check_quantised import quantised_mismatches

        lines = list(quantised_mismatches(options.quantised, options.folder, load_checkpoint(options.folder)))
    if options.vllm and not lines:
        lines = _engine_lines(options.folder, options.quantised)
    if options.json:
        sys.stdout.write(json.dumps({"mismatches": lines}) + "\n")
    if lines:
        raise CheckpointError("\n".join(lines))
    if not options.json:
        sys.stdout.write(f"{options.folder} holds the contract\n")


def _engine_lines(folder: Path, quantised: Path | None) -> list[str]:
    from medvl.export.check_engine import engine_parity

    return engine_parity(folder, load_checkpoint(folder), quantised).lines


def _add_quantise(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_quantise)
    presets = ", ".join(PRESETS)
    parser.add_argument("--checkpoint", required=True, metavar="FOLDER|PRESET", help=f"folder, or one of: {presets}")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="transformers folder to make")


def _quantise(options: argparse.Namespace) -> None:
    from medvl.export.quantise import write_int8

    out = target_of(options.out)
    if out.exists():
        raise SetupError(f"{out} exists already: name another folder with --out.")
    with locked(out), replacement(out) as staging:
        write_int8(resolve_checkpoint(options.checkpoint), staging)
    sys.stdout.write(f"{options.out} written\n")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_verify)
    parser.add_argument("repository", type=Path, help="folder that medvl-export build wrote")
    parser.add_argument("--files-only", action="store_true", help="not whether its engines fit this machine")


def _verify(options: argparse.Namespace) -> None:
    manifest = verify_repository(options.repository)
    if manifest.target == "tensorrt" and not options.files_only:
        require_machine(options.repository, manifest, this_machine())
    bits = f", language model in {manifest.quantisation.weight_bits} bits" if manifest.quantisation else ""
    files = len(manifest.files)
    sys.stdout.write(f"{options.repository} holds its manifest: {manifest.checkpoint}{bits}, {files} files\n")


def _add_phantom(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_phantom)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where series, labels and truth go")
    parser.add_argument("--seed", type=int, default=0, help="of the first patient (0)")
    parser.add_argument(
        "--number", type=int, default=1, help="patients, each in a folder named by its seed if many (1)"
    )
    parser.add_argument("--slices", type=int, help="slices; drawn, as is what they cover, when not given")
    parser.add_argument(
        "--region",
        help="what --slices cover, such as trunk, which is from chest to pelvis (chest and abdomen)",
    )
    parser.add_argument("--side", type=int, help="rows and columns (256)")
    parser.add_argument("--format", choices=("dicom", "nifti"), default="dicom", help="of the series (dicom)")
    parser.add_argument("--orientation", default="head first supine", help="how DICOM pixels are stored (%(default)s)")
    parser.add_argument("--transfer-syntax", default="explicit", help="of the DICOM files (%(default)s)")


def _phantom(options: argparse.Namespace) -> None:
    from medvl.embedded.files import IN_PLANE, LEAST_SIDE, NIFTI_FILE, TRANSFER_SYNTAXES
    from medvl.embedded.phantom import Protocol, Region, make_phantom, sized

    if options.seed < 0 or min(n for n in (options.slices, options.side, options.number, 1) if n is not None) < 1:
        raise InvalidRequest(
            "A phantom has at least one slice and one pixel: give positive --slices, --side and --number, and no "
            "negative --seed."
        )
    if options.region and not options.slices:
        raise InvalidRequest("--region is divided into slices: give --slices, too.")
    region = options.region or Region.CHEST_ABDOMEN
    for name, given, known in (
        ("--orientation", options.orientation, IN_PLANE),
        ("--transfer-syntax", options.transfer_syntax, TRANSFER_SYNTAXES),
        ("--region", region, tuple(Region)),
    ):
        if given not in known:
            raise InvalidRequest(f"{name} {given} is not one of: {', '.join(known)}.")
    side = options.side or 256
    if side < (least := LEAST_SIDE.get(options.transfer_syntax, 1)):
        raise InvalidRequest(f"{options.transfer_syntax} takes slices of {least} pixels a side: give --side {least}.")
    protocol = sized(options.slices, side, Region(region)) if options.slices else Protocol(side=side)
    for seed in range(options.seed, options.seed + options.number):
        folder = options.out if options.number == 1 else options.out / f"{seed}"
        _clear_series(folder / "series", NIFTI_FILE)
        _write_phantom(folder, make_phantom(seed, protocol), options)


def _clear_series(folder: Path, nifti_file: str) -> None:
    """Remove an earlier phantom's series, and nothing else."""
    stale = list(folder.iterdir()) if folder.is_dir() else []
    if any(p.suffix != ".dcm" and p.name != nifti_file for p in stale):
        raise SetupError(f"The folder {folder} holds something else than a series: name another with --out.")
    for path in stale:
        path.unlink()


def _write_phantom(folder: Path, phantom: Phantom, options: argparse.Namespace) -> None:
    from medvl.embedded import files

    series = folder / "series"
    if options.format == "nifti":
        files.write_nifti(series / files.NIFTI_FILE, phantom)
    else:
        syntax = files.TRANSFER_SYNTAXES[options.transfer_syntax]
        files.write_series(series, phantom, orientation=options.orientation, transfer_syntax=syntax)
    files.write_labels(folder / "labels" / files.LABELS_FILE, phantom)
    files.write_truth(folder / "truth", phantom)
    sys.stdout.write(f"{series} holds {phantom.geometry.shape[0]} slices\n")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_train)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="state, curves and cases; resumed")
    parser.add_argument(
        "--stages",
        metavar="S,...",
        help="of cases, perception, coarse (CPU), slices, clips, language (CPU), joint, looks, reports, words and "
        "proposals, one after another (all)",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after so long, to be resumed (10)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the networks learn (cpu)")
    parser.add_argument(
        "--workers", type=_count, default=0, metavar="N", help="processes that draw what steps need (0)"
    )
    parser.add_argument("--threads", type=_positive, default=1, help="threads of torch (1)")
    parser.add_argument(
        "--cases",
        type=_numbers,
        metavar="FIRST:END",
        help="numbers of the phantoms to draw from (0:3600; 0:15000 on a GPU)",
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FOLDER", help="write what was learnt so far as a checkpoint"
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of things")
    return int(text)


def _positive(text: str) -> int:
    if not _count(text):
        raise argparse.ArgumentTypeError("at least one is needed")
    return int(text)


def _numbers(text: str) -> range:
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:END, the first number below the end")
    return range(int(first), int(end))


def _train(options: argparse.Namespace) -> None:
    import torch

    from medvl.training.curves import draw_curves
    from medvl.training.train import MAKE_CASES, finish, stages_on, train

    known = [MAKE_CASES, *stages_on(options.device)]
    names = options.stages.split(",") if options.stages else known
    if unknown := [name for name in names if name not in known]:
        raise InvalidRequest(f"There is no stage {unknown[0]!r}: the stages are {', '.join(known)}.")
    checkpoint = options.checkpoint and target_of(options.checkpoint)
    if checkpoint and checkpoint.exists() and not (checkpoint / CHECKPOINT_FILE).is_file():
        raise SetupError(f"{checkpoint} is not a checkpoint that could be replaced: name another with --checkpoint.")
    torch.set_num_threads(options.threads)
    done = train(options.out, names, options.minutes, _progress, options.device, options.workers, options.cases)
    draw_curves(options.out, options.out / "curves.png")
    if checkpoint:
        with locked(checkpoint), replacement(checkpoint) as staging:
            finish(options.out, staging, options.device)
    sys.stdout.write("trained\n" if done else "not finished: run the command again to go on\n")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_evaluate)
    add = parser.add_argument
    presets = ", ".join(PRESETS)
    add("--checkpoint", required=True, metavar="FOLDER|PRESET", help=f"folder, or one of: {presets}")
    add("--cases", type=int, default=100, metavar="N", help="phantoms for reports and questions (100)")
    add("--seed", type=int, default=0, help="of the first of them; those of training are refused (0)")
    add("--mask-cases", type=int, metavar="M", help="the first so many of them for masks (60 at most)")
    add("--control-cases", type=int, default=20, help="of these, for masks on an empty and another volume (20)")
    add("--objects", type=int, default=2, help="organs, and again findings, of a case to point at (2)")
    add("--texts", type=int, default=3, help="findings of a case to ask for in words, and again absent ones (3)")
    add("--served", metavar="HOST:PORT", help="evaluate the service there, and compare it with the reference")
    add("--real", type=Path, metavar="FOLDER", help="also point at organs of the real CT in this folder of test data")
    add("--threads", type=_positive, default=1, help="threads of torch (1)")
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    add("--work", type=Path, metavar="FOLDER", help="results that are done, for a second run (beside the JSON)")
    add("--markdown", action="store_true", help="print tables in Markdown")


def _evaluate(options: argparse.Namespace) -> None:
    import torch

    from medvl.evaluation.command import Settings, run

    torch.set_num_threads(options.threads)
    settings = Settings(
        checkpoint=options.checkpoint,
        cases=options.cases,
        seed=options.seed,
        mask_cases=options.mask_cases,
        control_cases=options.control_cases,
        objects=options.objects,
        texts=options.texts,
        served=options.served,
        real=options.real,
        json=options.json,
        work=options.work,
        markdown=options.markdown,
    )
    run(settings, _progress, sys.stdout.write)


def _add_ladder(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_ladder)
    add = parser.add_argument
    presets = ", ".join(PRESETS)
    add("--checkpoint", required=True, metavar="FOLDER|PRESET", help=f"folder, or one of: {presets}")
    add("--repository", required=True, type=Path, metavar="FOLDER", help="built from it for the CPU")
    add("--cases", type=int, default=4, metavar="N", help="phantoms whose masks are compared (4)")
    add("--seed", type=int, default=0, help="of the first of them; those of training are refused (0)")
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    add("--markdown", action="store_true", help="print the table in Markdown")


def _ladder(options: argparse.Namespace) -> None:
    import torch

    from medvl.evaluation.document import require_place, write_document
    from medvl.evaluation.ladder import measure_ladder
    from medvl.evaluation.table import markdown, plain
    from medvl.export.rungs import RUNGS

    torch.set_num_threads(1)
    folder = resolve_checkpoint(options.checkpoint)
    if options.json:
        require_place(options.json)
    ladder = measure_ladder(folder, options.repository, options.cases, options.seed, _progress)
    if options.json:
        write_document(options.json, ladder.values())
    sys.stdout.write(ladder.table(markdown if options.markdown else plain))
    # What this checkpoint is served with has to hold; the others are told about.
    if lines := [f"{row.part}: {row.broken}" for row in ladder.rows if row.broken and row.rung == RUNGS[0].name]:
        raise ParityError("\n".join(lines))


def _progress(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
