"""A chat template is foreign code: it reaches nothing but its messages, and cannot take the process down."""

import pytest

from runtime.errors import EnginewrightError
from runtime.text.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}]
REFUSED = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].system('true') }}",
    "{{ cycler.__init__.__globals__.os.environ }}",
    "{{ raise_exception.__globals__['jinja2'] }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages).x.y }}",
    "{{ messages[0].update({'content': 'other'}) }}",
    "{{ messages.clear() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]
TOO_MUCH = [
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{{ 'x' * 10 ** 15 }}",
    "{{ '%999999999999999d' % 1 }}",
    "{{ '{:999999999999999}'.format(1) }}",
]
EMPTY = ["{{ messages.__class__ }}", "{{ raise_exception.__globals__ }}", "{{ strftime_now.__code__ }}",
         "{{ '{0.__class__}'.format(1) }}", "{{ ''|attr('__class__') }}"]  # fmt: skip


def render(template):
    return ChatTemplate(template, "<s>", "</s>").render([dict(message) for message in MESSAGES])


@pytest.mark.parametrize("template", [*REFUSED, *TOO_MUCH])
def test_what_the_sandbox_forbids_is_one_error(template):
    with pytest.raises(EnginewrightError, match="the chat template") as caught:
        render(template)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", EMPTY)
def test_an_attribute_of_pythons_own_reads_as_nothing(template):
    assert render(template) == ""


def test_messages_stay_as_they_were():
    messages = [dict(message) for message in MESSAGES]
    for template in ("{{ messages.append(1) }}", "{{ messages[0].pop('content') }}", "{% set messages = [] %}"):
        try:
            ChatTemplate(template, "", "").render(messages)
        except EnginewrightError:
            continue
    assert messages == MESSAGES
