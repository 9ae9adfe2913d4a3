"""Jinja templates that ask for more than a machine has, or give another text at every run; of `messages` alone."""

from typing import Final

TOO_MUCH: Final = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(10 ** 9) %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 2 ** 100000 }}",
    "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x > 0 }}",
    "{{ (messages[0].content ~ 'ff' * 9999)|replace('What?', '')|int(base=16) // 3 }}",
    "{{ 1|round(-999999999) }}",
    "{{ 2.5|round(999999999, 'floor') }}",
    "{{ [1]|map('round', 999999999, 'ceil')|list }}",
    "{{ messages[0].content * 10 ** 9 }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ messages[0].content | center(10 ** 10) }}",
    "{{ 'a'|center(10 ** 9) }}",
    "{{ 'a'|indent(999999999, true) }}",
    "{{ 'a'.ljust(10 ** 9) }}",
    "{{ '\t'.expandtabs(10 ** 9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%.999999999f' % 1.5 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ [1]|batch(10 ** 9, 0)|list }}",
    "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "{{ ('a b ' * 4000000)|wordwrap(1) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
)
BY_CHANCE: Final = (
    "{{ messages|random }}",
    "{% if false %}{{ ['a', 'b']|random }}{% endif %}",
    "{{ [messages]|map('random')|list }}",
    "{{ lipsum() }}",
    "{% set say = lipsum %}{{ say(1) }}",
    "{{ messages|map(attribute='content') }}",
    "{{ messages[0].content.upper }}",
)
