"""Attention inside packed documents against PyTorch's own with a mask: values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from llm_qa.models.fast.ops.attention import attend, document_bounds, document_mask

POSITIONS = torch.cat([torch.arange(length) for length in (3, 2, 1, 9, 1, 40)])


def test_documents_begin_and_end_where_their_positions_say():
    starts, ends = document_bounds(torch.tensor([0, 1, 2, 0, 1, 0, 0]))
    assert starts.tolist() == [0, 0, 0, 3, 3, 5, 6]
    assert ends.tolist() == [3, 3, 3, 5, 5, 6, 7]


@pytest.mark.parametrize("positions", [[0, 1, 2, 2, 3], [5, 6, 7, 8, 9]])
def test_only_a_0_begins_a_document(positions):
    starts, ends = document_bounds(torch.tensor(positions))
    assert starts.tolist() == [0] * 5
    assert ends.tolist() == [5] * 5


def test_documents_see_themselves_and_what_is_before():
    mask = document_mask(document_bounds(torch.tensor([0, 1, 2, 0, 1, 0, 0]))[0])
    seen = [[i for i in range(7) if row[i]] for row in mask]
    assert seen == [[0], [0, 1], [0, 1, 2], [3], [3, 4], [5], [6]]


@pytest.mark.parametrize("heads", [1, 4])
def test_values_and_gradients_are_those_of_pytorch_s_attention(heads):
    torch.manual_seed(0)
    packed = torch.randn(len(POSITIONS), heads * 3 * 16, requires_grad=True)
    bounds = document_bounds(POSITIONS)
    query, key, value = packed.view(1, len(packed), heads, -1).transpose(1, 2).chunk(3, dim=-1)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=document_mask(bounds[0]))
    wanted = wanted.transpose(1, 2).reshape(len(packed), -1)
    got, _ = attend(packed, *bounds, heads)
    grad = torch.randn_like(got)
    torch.testing.assert_close(got, wanted)
    (of_got,), (of_wanted,) = (torch.autograd.grad(value, packed, grad) for value in (got, wanted))
    torch.testing.assert_close(of_got, of_wanted)
