"""`edgemem profile predict`: an estimate for a device that is not here, with all that it was made from."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from edgemem.tools.options import file_path, positive
from edgemem.tools.profile_flags import add_device_files, add_formats

if TYPE_CHECKING:
    from edgemem.profiles.prediction import Fit, Input, Prediction

_CONTEXT = 512


def configure(parser: argparse.ArgumentParser) -> None:
    memory = parser.add_mutually_exclusive_group(required=True)
    memory.add_argument("--device", metavar="NAME", help="one of edgemem profile devices")
    memory.add_argument("--peak", type=_bandwidth, metavar="GB/S", help="the memory's peak bandwidth")
    add_device_files(parser)
    parser.add_argument("--shape", required=True, metavar="NAME", help="a well-known model, such as qwen2.5-7b")
    parser.add_argument("--weights", default="int4", metavar="KIND", help="int4 (default), int8, bf16, int4-g128 ...")
    parser.add_argument("--context", type=positive, default=_CONTEXT, metavar="N", help=f"KV slots in use ({_CONTEXT})")
    parser.add_argument("--kv", choices=("fp16", "int8"), default="fp16", help="keys and values (fp16)")
    parser.add_argument(
        "--from",
        dest="records",
        type=file_path,
        action="append",
        default=[],
        metavar="RECORD.json",
        help="fit to what these records measured (default: to published steps); repeatable",
    )
    parser.add_argument("--engine", default="native", metavar="NAME", help="whose cells of the records (native)")
    add_formats(parser, "json")


def run(args: argparse.Namespace) -> int:
    from edgemem.tools.console import note, print_facts, print_json

    predicted = _predict(args)
    if args.format == "json":
        print_json(predicted.to_dict())
        return 0
    print(predicted.line())
    print_facts([(f"  {given.name}", f"{_amount(given)} ({given.origin})") for given in predicted.inputs])
    if not args.records:
        note("fitted to what others published of their own engine; --from RECORD.json fits to your own runs")
    return 0


def _amount(given: Input) -> str:
    from edgemem.profiles.units import size_text

    if given.unit.startswith("bytes"):
        return size_text(given.value) + given.unit.removeprefix("bytes")
    return f"{given.value:.4g} {given.unit}"


def _predict(args: argparse.Namespace) -> Prediction:
    from edgemem.compiler.random_model import random_plan
    from edgemem.profiles.floors import kv_format, model_step
    from edgemem.profiles.prediction import predict
    from edgemem.profiles.shapes import shape
    from edgemem.tools.profile_targets import parse_weights

    spec, precision = shape(args.shape), parse_weights(args.weights)
    if args.context > spec.trained_context:
        args.usage_error(f"--context: {args.shape} was trained for {spec.trained_context} slots")
    step = model_step(spec, random_plan(spec, precision).__getitem__, args.context, kv_format("native", args.kv))
    name = f"{args.shape} {precision}, {args.context} slots {args.kv}"
    peak, origin = _peak(args)
    return predict(_fit(args, precision.bits, peak), step, name, peak, origin)


def _peak(args: argparse.Namespace) -> tuple[float, str]:
    """Bytes a second, and where from."""
    from edgemem.profiles.devices import DeviceTable
    from edgemem.runtime.errors import SettingsError

    if args.peak is not None:
        return args.peak * 1e9, "--peak"
    device = DeviceTable.load(args.devices).named(args.device)
    if device.datasheet_bandwidth is None:
        do = "measure it there: edgemem profile; or give --peak"
        raise SettingsError(f"no datasheet gives the peak of {device.name}", got=device.source, do=do)
    return device.datasheet_bandwidth, f"datasheet of {device.name}: {device.source}"


def _fit(args: argparse.Namespace, bits: int, peak: float) -> Fit:
    """To the records, or to the published steps nearest to these weights and this memory."""
    from edgemem.profiles.fits import nearest, published_steps
    from edgemem.profiles.prediction import fit, measurements
    from edgemem.profiles.record_file import read_record

    if not args.records:
        return nearest(published_steps(), bits, peak).fit()
    steps = [step for path in args.records for step in measurements(read_record(path), args.engine)]
    return fit(steps, f"{len(steps)} cells of {', '.join(map(str, args.records))}")


def _bandwidth(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1e-3 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no bandwidth from 0.001 to 1000000 GB/s")
    return value
