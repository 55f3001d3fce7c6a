"""What rounding to half precision may change: allowances of tests, from the precision itself."""

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # a number is rounded by at most this share of it


def roundings(number, policy):
    """What `number` roundings in the precision of a dtype policy add up to, relative to 1.

    Processors add up in different orders and round in between or not, and so do the graphs of one
    processor: half precision that was computed twice, or elsewhere, agrees to this only.
    """
    return number * UNIT[policy.removeprefix("mixed_")]
