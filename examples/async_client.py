"""Ask a running server for 240 series at once: `python examples/async_client.py`.

Start one first: `make demo`, then `normfold serve --repository repository`.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter

from normfold import AsyncClient, ClientError
from normfold.models import gunpoint


async def main(address: str) -> None:
    """Ask for all series, and print how many of the answers are right."""
    samples = [*gunpoint.load_samples()] * 40
    labels = gunpoint.load_labels()

    async def ask(client: AsyncClient, sample: gunpoint.MotionSample) -> str:
        answer = await client.infer("gunpoint", {"x": sample.series})
        return labels[int(answer["output"].argmax())]

    async with AsyncClient(address, in_flight=16) as client:  # the others wait in the client
        answers = await asyncio.gather(*(ask(client, sample) for sample in samples))
    right = sum(answer == sample.motion for answer, sample in zip(answers, samples, strict=True))
    print(f"{len(answers)} answers, {right} of them right: {dict(Counter(answers))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:8001")
    try:
        asyncio.run(main(parser.parse_args().address))
    except ClientError as error:  # no server, no such model: the message says what to do
        raise SystemExit(f"Error: {error}") from None
