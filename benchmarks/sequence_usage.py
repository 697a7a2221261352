"""The part of the page of sequences that tells how one is asked about; nothing in it is measured."""

from typing import Final

USAGE: Final = """## Step by step

The owner trains in clear, compiles, and registers each model (`frames`, `first`, and `middle` or `last`
where a window takes them); the requester asks for one result after another:

```
bmif diagnose sequence train frames.npz -o network            # image rows: images, case, order, label
bmif diagnose sequence compile network -o models              # the plan, with its refreshes
bmif diagnose register models/frames.model --kind sequence-diagnosis --provenance "..." -c node.yaml

bmif diagnose sequence start models sequences.npz -o session --keys keys
bmif diagnose submit MODEL session/request-1 keys/frames/evaluation.keys --fee 1000 -c node.yaml
bmif diagnose fetch JOB -o result-1 -c node.yaml
bmif light --genesis genesis.json receipt JOB --result result-1   # proved by validators' votes
bmif diagnose sequence advance session result-1 --keys keys   # decrypts here, encrypts request 2: refresh 1
```

and so on with `keys/segments/evaluation.keys`, until `advance` prints each case's decision. `fetch` shows
how much stake has committed to a result, and an evaluator's own `bmif diagnose status JOB` how far its
evaluation is. A result that decrypts to values that the network can't give is refused by `advance`, and the
session stays where it was.

**Encrypted weights.** `compile --weights encrypted --keys keys` encrypts every weight, of frames and of
segments, under the pairs in `keys/frames` and `keys/segments`; only their holder can then ask, and can read
the weights. Where that is another than the owner, the secret keys need not lie where the weights are in
clear: the owner runs `compile --weights encrypted --wants wanted.json`, the holder `bmif diagnose keys
wanted.json --keys keys`, and gives the owner of each folder `public.key` and `evaluation.keys`, with which
the owner compiles and registers (`--keys models-keys/frames/evaluation.keys`). `bmif diagnose compile`
takes the same options for single images.

Frames with encrypted weights are compiled at a scale of 2^40, not the compiler's own choice for the
smallest ring: at that one features come out exact to 2^-5, at 2^40 to 2^-16. It takes the network above
from a ring of 8192 to one of 16384 (planned: 1.2 GB a request, 1.6 GB for the frames' model, 93 s of one
core).

**Sizes.** Requests of frames have as many ciphertexts as a frame has pixels and colours. Those of 16x16
pixels in three colours have 604 MB, which the default limits take; with encrypted weights they exceed
1 GiB, the longest blob that nodes take unless `limits.max_blob_bytes` and, of evaluators,
`evaluator.max_blob_bytes` say more.
"""


def describe_usage() -> list[str]:
    return USAGE.split("\n")
