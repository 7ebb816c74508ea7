"""Answer one prompt: the text streams to stdout, one line about the speed follows on stderr.

example: edgemem run -m smollm2-135m -p "Why is the sky blue?" -n 128
The prompt is a user's message in the model's chat template; --raw, or a model without a template, continues the
text as it stands. With --json stdout holds one object and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgemem.runtime.errors import ContextError, EdgememError
from edgemem.tools.options import (
    add_engine,
    add_model,
    add_sampling,
    in_flags,
    open_session,
    package_of,
    positive,
    sampling_of,
)

if TYPE_CHECKING:
    from edgemem.runtime.session import Session
    from edgemem.tools.speed import SpeedMeter


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("-p", "--prompt", required=True, metavar="TEXT", help='the prompt; "-" reads it from stdin')
    parser.add_argument("-n", "--n-predict", type=positive, default=256, metavar="N", help="tokens at most (256)")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    parser.add_argument("--raw", action="store_true", help="continue the prompt's text, without the chat template")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; repeatable")
    parser.add_argument("--ignore-eos", action="store_true", help="go on to -n tokens, for benchmarks")
    parser.add_argument("--no-speed", action="store_true", help="no speed line, no bandwidth measurement")
    parser.add_argument("--json", action="store_true", help="print one object with the answer and its timings")
    add_sampling(parser)
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    from edgemem.tools.conditions import conditions
    from edgemem.tools.console import note, print_json
    from edgemem.tools.speed import SpeedMeter

    if args.raw and args.system is not None:
        args.usage_error("--system needs the chat template, which --raw leaves out")
    with open_session(args) as session:
        package = package_of(session)
        meter = SpeedMeter(session, package.manifest, args.threads)
        answer = _stream(args, session, meter)
        speed = meter.speed()
        if not args.no_speed:
            speed = speed.measured()
        under = conditions(package, session.engine.capacity)
    if args.json:
        print_json({**answer.to_dict(), **speed.to_dict(), **under})
    elif not args.no_speed:
        note(speed.line())
    if answer.problem is not None:
        raise answer.problem
    return 0


@dataclass
class _Answer:
    """What came, also if the engine failed half-way; `problem` is then what it failed with."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    problem: EdgememError | None = None

    def to_dict(self) -> dict[str, object]:
        return {"text": "".join(self.texts), "token_ids": self.token_ids, "finish_reason": self.finish_reason}


def _stream(args: argparse.Namespace, session: Session, meter: SpeedMeter) -> _Answer:
    """Run the prompt and, but for --json, print the text as it comes."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    messages = [{"role": "system", "content": args.system}, {"role": "user", "content": prompt}]
    answer = _Answer()
    chunks = session.stream(
        prompt if args.system is None else messages,
        sampling=sampling_of(args),
        max_tokens=args.n_predict,
        stop=args.stop,
        ignore_eos=args.ignore_eos,
        raw=args.raw,
    )
    try:
        for chunk in chunks:
            meter.mark()
            answer.texts.append(chunk.text)
            answer.token_ids += chunk.token_ids
            answer.finish_reason = chunk.finish_reason
            if not args.json:
                print(chunk.text, end="", flush=True)
    except ContextError as error:
        raise in_flags(error, session) from error
    except EdgememError as error:
        if answer.finish_reason != "error":  # refused before it began: there is no answer to report
            raise
        answer.problem = error
    if not args.json:
        print(flush=True)
    return answer
