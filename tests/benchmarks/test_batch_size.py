import jax
import jax.numpy as jnp
import pytest

from clip_jax.benchmarks.batch_size import largest_batch, memory_limit, program_bytes


@pytest.mark.parametrize(
    ("limit", "multiple", "most", "largest"),
    [
        (1000, 1, 2**20, 992),  # parts of 512 / 16
        (1024, 1, 2**20, 1024),
        (1023, 1, 2**20, 992),
        (37, 1, 2**20, 37),  # below the first size that is tried
        (100, 6, 2**20, 96),
        (6, 6, 2**20, 6),
        (10**9, 1, 900, 896),
        (10**9, 8, 24, 24),
    ],
)
def test_it_is_the_largest_multiple_that_fits(limit, multiple, most, largest):
    tried = []

    def fits(N):
        tried.append(N)
        return limit >= N

    assert largest_batch(fits, multiple, most) == largest
    assert all(N % multiple == 0 and most >= N for N in tried)
    assert len(tried) == len(set(tried)) <= 12


def test_what_never_fits_is_said():
    with pytest.raises(ValueError, match="not even a batch of 8 fits: take a smaller model, remat=full"):
        largest_batch(lambda N: False, 8, 1000)


def test_bytes_of_a_program_are_of_arguments_results_and_temporaries():
    x = jax.ShapeDtypeStruct((131, 7), jnp.float32)
    program = jax.jit(lambda x: x * 2).lower(x).compile()
    assert program_bytes(program) == 2 * 131 * 7 * 4
    donated = jax.jit(lambda x: x * 2, donate_argnums=0).lower(x).compile()
    assert program_bytes(donated) == 131 * 7 * 4


def test_the_limit_is_the_allocator_s_or_the_machine_s():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 17}

    assert memory_limit(Device()) == 17
    assert 2**26 < memory_limit(jax.devices()[0]) < 2**43
