import torch

from adasel_stream.decoded import DecodedRows
from adasel_stream.decoding import Decoder, Decoding
from adasel_stream.rows import Leaves


def test_slots_that_no_row_fills_are_left_out() -> None:
    """A device chooses as many slots as asked for; what fills none is no sample to decode."""
    counts = {"decoded": 0, "failed": 0}
    rows = DecodedRows(2, Decoder(Decoding(None, workers=0), None, None, counts))
    rows.begin({"x": torch.empty(0)})
    remembered: Leaves = {
        name: torch.arange(1.0, 4.0)
        for name in ("weights", "probabilities", "inclusions", "importances")
    }
    void = torch.tensor([False, True, False])
    rows.push({"['x']": torch.arange(5)}, torch.tensor([4, 0, 2]), remembered, void)
    assert len(rows) == 2
    popped = rows.pop()
    assert popped is not None
    batch, emitted = popped
    assert batch["x"].tolist() == [4, 2]
    assert emitted.weights.tolist() == [1.0, 3.0]
    assert counts == {"decoded": 2, "failed": 0}
