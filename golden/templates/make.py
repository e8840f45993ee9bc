"""What transformers makes of chat templates, for crates/moe-forward/src/chat/golden.rs.

    pip install -r requirements.txt
    python golden/templates/make.py

constructs.json: templates rendered by transformers' own environment, each with its variables; a null for text is a template that it
refuses. conversations.json: folders with a tokenizer and templates, and conversations as apply_chat_template gives them. All
templates were written for this file; those of the second kind are in the manner of well-known models, not theirs.
"""
import json, os, pathlib, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TZ"] = "UTC"
import jinja2
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = pathlib.Path(__file__).parent
V = {
    "s": "The quick  Brown fox", "empty": "", "u": "Zürich – 東京 \U0001f600", "lines": "a\nb\r\nc\n", "q": "it's \"it\" <b> & \\",
    "i": 7, "neg": -7, "zero": 0, "f": 2.5, "tiny": 0.00001, "big": 1e16, "whole": 3.0, "large": 12345678901234567890, "t": True, "n": None,
    "l": [3, 1, 2], "words": ["pear", "Apple", "fig", "apple"], "nested": [[1, 2], [3]], "none_list": [],
    "d": {"b": 1, "a": [True, None, 1.0, "x'y"], "items": "own", "c": {"z": 0.1}},
    "people": [{"name": "Ann", "age": 30, "role": {"id": 1}}, {"name": "bob", "age": 25, "role": {"id": 2}}, {"name": "Cid", "age": 30, "role": {"id": 1}}],
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <there> & co"}, {"role": "assistant", "content": "Yes", "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"z": "a < b & c's", "x": 1, "city": "Zürich", "on": True, "none": None, "f": 1e-5}}}]}],
    "tools": None, "bos_token": "<s>", "add_generation_prompt": False,
}
TEMPLATES = """
{{ 1e-05 }} {{ 1.0 }} {{ 1e16 }} {{ 1e15 }} {{ 123456789.125 }} {{ 0.1 + 0.2 }} {{ 1/3 }} {{ 5e-324 }} {{ 1.5e300 * 1e10 }}
{{ tiny }} {{ big }} {{ whole }} {{ large }} {{ f }} {{ -0.0 }} {{ 1e400 }} {{ -1e400 }} {{ 'nan' | float }}
{{ true }} {{ false }} {{ none }} {{ True }} {{ None }} {{ t }} {{ n }} {{ missing }}|{{ [true, none, missing] }}
{{ d }} {{ l }} {{ nested }} {{ () }} {{ (1,) }} {{ (1, 'a') }} {{ {} }} {{ {'a': 1, 2: none, none: 1.5} }}
{{ [q, 'a\\nb', "it's", '"', 'both \\' and "', '\\x00\\x7f\\x80', 'é', '\\u200b\\u00ad', '\\t\\\\'] }}
{{ d | tojson }} {{ q | tojson }} {{ u | tojson }}
{{ u | tojson(ensure_ascii=true) }} {{ u | tojson(true) }} {{ '\\x7f\\x1f\\x08\\x0c' | tojson }} {{ '\\x7f' | tojson(ensure_ascii=True) }}
{{ d | tojson(indent=2) }} {{ [] | tojson(indent=2) }} {{ {} | tojson(indent=4) }} {{ [[], {}] | tojson(indent=1) }}
{{ d | tojson(indent='--') }} {{ d | tojson(indent=0) }}
{{ d | tojson(separators=(',', ':')) }} {{ d | tojson(separators=[', ', '=']) }} {{ d | tojson(indent=2, separators=(',', ':')) }}
{{ d | tojson(sort_keys=true) }} {{ {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=True, indent=2) }}
{{ [1e-5, 1.0, 1e16, large, true, none] | tojson }} {{ 'nan' | float | tojson }} {{ '-inf' | float | tojson }} {{ {1: 2, true: 3, none: 4, 1.5: 5} | tojson }}
{{ missing | tojson }}
{{ range(3) | tojson }}
{{ (1, 2) | tojson }} {{ 'a' | tojson | safe }} {{ '<' | tojson ~ '<' }}
{{ {(1, 2): 3} | tojson }}
{{ messages[2].tool_calls[0].function.arguments | tojson }}
{% if tools is not none %}TOOLS{% else %}no tools{% endif %} {{ tools is defined }} {{ documents is defined }}
{{ s is string }} {{ l is string }} {{ s is sequence }} {{ l is sequence }} {{ d is sequence }} {{ i is sequence }} {{ n is sequence }} {{ missing is sequence }}
{{ s is iterable }} {{ l is iterable }} {{ d is iterable }} {{ i is iterable }} {{ n is iterable }} {{ missing is iterable }} {{ range(3) is iterable }} {{ range(3) is sequence }}
{{ d is mapping }} {{ l is mapping }} {{ s is mapping }} {{ dict() is mapping }} {{ namespace() is mapping }} {{ messages[0] is mapping }}
{{ i is number }} {{ f is number }} {{ t is number }} {{ s is number }} {{ i is integer }} {{ t is integer }} {{ f is float }} {{ i is float }} {{ t is boolean }} {{ i is boolean }}
{{ n is none }} {{ missing is none }} {{ missing is defined }} {{ missing is undefined }} {{ d.x is defined }} {{ d.b is defined }} {{ d['x'] is undefined }}
{{ t is true }} {{ t is false }} {{ 1 is true }} {{ i is odd }} {{ i is even }} {{ neg is odd }} {{ i is divisibleby 7 }} {{ i is divisibleby(2) }}
{{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'aBc' is lower }} {{ '1' is upper }} {{ s is in [s] }} {{ 'x' is in 'xyz' }} {{ 3 is eq 3 }} {{ 3 is gt(2) }} {{ 2 is lessthan 3 }}
{{ n is sameas none }} {{ t is sameas true }} {{ 1 is sameas true }} {{ range is callable }} {{ s is callable }} {{ s.upper is callable }} {{ missing is callable }}
{{ 'upper' is filter }} {{ 'nope' is filter }} {{ 'odd' is test }} {{ 'nope' is test }} {{ s is escaped }} {{ s|e is escaped }}
{{ d.items() is sequence }} {{ d.keys() is iterable }} {{ (l | map('abs')) is sequence }} {{ (l | map('abs')) is iterable }} {{ 1 is not none }} {{ not 1 is none }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 // -2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7.5 // -2 }}
{{ 2 ** 10 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 2 ** -1 }} {{ 2 ** 0.5 }} {{ 2 ** 100 }} {{ (-8) ** 3 }} {{ 4 ** 0.5 }} {{ 0 ** 0 }}
{{ 1 + 2 * 3 - 4 / 2 }} {{ (1 + 2) * 3 }} {{ - 3 + 5 }} {{ +3 }} {{ --3 }} {{ -3|abs }} {{ 1 - -1 }} {{ true + 1 }} {{ 1.0 + 1 }} {{ 3 * 1.5 }}
{{ 1_000 }} {{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1e3 }} {{ 1.5E-3 }} {{ 1_0.5 }} {{ 12345678901234567890 * 2 }}
{{ 1 // 0 }}
{{ 1 / 0.0 }}
{{ 'a' + 1 }}
{{ 'a' + none }}
{{ missing + 'a' }}
{{ 1 + missing }}
{{ missing.x }}
{{ missing['x'] }}
{{ none.x }}|{{ none.x is defined }}
{{ n.x.y }}
{{ d.nope }}|{{ d.nope is defined }}|{{ l[10] }}|{{ s[100] }}|{{ i.x }}|{{ d[none] }}
{{ d.nope.more }}
{{ l.upper }}|{{ l.upper is defined }}
{{ 'a' * 3 }} {{ 3 * 'ab' }} {{ [1, 2] * 2 }} {{ 'x' * 0 }} {{ 'x' * -1 }} {{ '-' * 5 ~ '|' }} {{ (1,) * 2 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1] ~ missing }} {{ 1 ~ 2 }} {{ 1e-7 ~ '' }} {{ 'a' + 'b' ~ 'c' + 'd' }}
{{ [1] + [2] }} {{ (1,) + (2, 3) }} {{ 'a' 'b' "c" }}
{{ [1] + (2,) }}
{{ '%s and %d' % ('a', 3) }} {{ '%s' % 1.0 }} {{ '%5.2f|%-5s|%05d|%x|%X|%o|%e|%g|%%' % (3.14159, 'ab', 42, 255, 255, 8, 12345.678, 0.00001) }}
{{ '%(a)s-%(b)03d' % {'a': 'x', 'b': 7} }} {{ '%s' % [1, 2] }} {{ '%r' % 'a' }} {{ '%c%c' % (65, 'b') }} {{ '%+d % d' % (3, 4) }} {{ '%.3s|%5s' % ('abcdef', 'é') }}
{{ '%s %s' % 'a' }}
{{ '%d' % 'a' }}
{{ '%s' % ('a', 'b') }}
{{ '%i %u' % (3.7, 4) }} {{ '%.2e' % 0.000123 }} {{ '%g %g %g' % (100000, 1000000, 1e-5) }} {{ '%#x' % 255 }} {{ '%*d' % (5, 42) }}
{{ '{} {}'.format(1, 'a') }} {{ '{1} {0}'.format('a', 'b') }} {{ '{name}!'.format(name='x') }} {{ '{:>5}|{:<5}|{:^5}|{:*^7}'.format('a', 'b', 'c', 'd') }} {{ '{{}}'.format() }}
{{ '{:05d} {:,} {:.2f} {:e} {:%} {:x} {:b} {:+}'.format(42, 1234567, 3.14159, 12345.6789, 0.25, 255, 5, 3) }} {{ '{0[a]} {1.b}'.format({'a': 1}, {'b': 2}) }} {{ '{!r}'.format('a') }}
{{ '{:g} {:g} {} {}'.format(1e10, 0.5, 1e16, 1.0) }} {{ '{:>8.3f}|{:08.2f}|{:_}'.format(3.14159, -3.14159, 1000000) }}
{{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' == 'a' }} {{ [1] == [1.0] }} {{ {'a': 1} == {'a': 1} }} {{ none == false }} {{ 1 != 2 }} {{ (1,) == [1] }} {{ missing == none }} {{ missing == nope }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 1 <= 1.0 }} {{ 2 > 1 >= 1 }} {{ 'Z' < 'a' }} {{ 1 == 1 != 2 }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ missing < 1 }}
{{ 1 in l }} {{ 5 not in l }} {{ 'a' in d }} {{ 'qu' in s }} {{ '' in s }} {{ 'x' in missing }} {{ 1 in range(3) }} {{ none in [none] }} {{ not 1 in l }} {{ 'b' in d.keys() }}
{{ 1 in s }}
{{ 1 in none }}
{{ 1 and 2 }} {{ 0 and 2 }} {{ 0 or 'x' }} {{ '' or none }} {{ not 0 }} {{ not '' and not none }} {{ [] or {} }} {{ 1 or missing.x }} {{ missing or 'd' }} {{ 0.0 or 1 }}
{{ 'a' if true else 'b' }} {{ 'a' if false }}| {{ 'a' if false else 'b' if false else 'c' }} {{ (1 if i > 3 else 2) + 1 }} {{ 'x' if 'a' in d and d.b == 1 else 'y' }}
{{ ('a' if false).x }}
{{ s[0] }} {{ s[-1] }} {{ s[4:9] }} {{ s[:3] }} {{ s[-3:] }} {{ s[::-1] }} {{ s[::2] }} {{ s[10:2:-2] }} {{ u[-1] }} {{ u[2:7] }} {{ s[5:1] }}| {{ s[-100:3] }}
{{ l[0] }} {{ l[-1] }} {{ l[1:] }} {{ l[::-1] }} {{ l[:-1] }} {{ l[5:] }} {{ (1, 2, 3)[1:] }} {{ range(10)[2:8:2] }} {{ range(10)[-1] }} {{ l[none:2] }} {{ l[true] }}
{{ l[::0] }}
{{ messages[1:] }} {{ messages[::-1][0].role }} {{ messages[:-1] | length }} {{ (messages | last).role }} {{ messages[-1]['role'] }} {{ messages | map(attribute='role') | join(',') }}
{{ d['b'] }} {{ d.b }} {{ d.get('b') }} {{ d.get('x') }} {{ d.get('x', 'def') }} {{ d['items'] }} {{ d.c.z }} {{ d['c']['z'] }} {{ d.a.0 }} {{ d.a[1] }} {{ nested.0.1 }}
{{ d.keys() }} {{ d.values() | list }} {{ d.items() | list }} {{ d.keys() | list | length }} {{ d | length }} {{ d | list }} {{ d.items() | length }}
{{ {'a': 1}.items() }} {{ {'a': 1}.values() }} {{ {}.keys() }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %} {% for k in d %}{{ k }}{% endfor %} {% for k, v in d | items %}{{ k }}{% endfor %} {% for k, v in {'x': 1} | dictsort %}{{ k }}{{ v }}{% endfor %}
{{ d.pop('b') }}
{{ l.append(4) }}
{{ d.update({'x': 1}) }}
{{ l.append is defined }} {{ d.update is defined }} {{ d.clear is callable }}
{{ s.__class__ }}|{{ s.__class__ is defined }}
{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ "they're o'neil x2y".title() }} {{ s.capitalize() }} {{ s.swapcase() }} {{ 'Straße'.upper() }} {{ 'ß'.casefold() }}
{{ '  a b '.strip() }}|{{ '  a '.lstrip() }}|{{ ' a  '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcba'.strip('ab') }}|{{ '\\n a \\n'.strip('\\n') }}|{{ '\\u3000a\\x1c'.strip() }}
{{ s.split() }} {{ s.split(' ') }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ' a b  c '.split(None, 1) }} {{ ' a b  c '.rsplit(None, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a,b'.split(',')[-1] }}
{{ 'a,b,c'.split(',', maxsplit=1) }} {{ 'a--b'.split(sep='--') }} {{ 'a</think>b</think>c'.split('</think>')[-1].lstrip('\\n') }}
{{ 'a'.split('') }}
{{ lines.splitlines() }} {{ lines.splitlines(true) }} {{ 'a\\x0bb\\u2028c'.splitlines() }} {{ ', '.join(['a', 'b']) }} {{ ''.join([]) }} {{ '-'.join('abc') }} {{ ','.join(d) }}
{{ ','.join([1, 2]) }}
{{ s.replace('quick', 'slow') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'abc'.replace('', '-') }} {{ 'abc'.replace('b', '') }}
{{ s.startswith('The') }} {{ s.endswith('fox') }} {{ s.startswith(('A', 'T')) }} {{ s.startswith('quick', 4) }} {{ s.endswith('T', 0, 1) }}
{{ s.find('q') }} {{ s.find('z') }} {{ s.rfind('o') }} {{ s.index('B') }} {{ s.count('o') }} {{ s.count('') }} {{ u.find('東') }} {{ s.find('o', 14) }} {{ 'aaaa'.count('aa') }}
{{ s.index('zz') }}
{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('x') }} {{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('=') }} {{ 'abc'.rpartition('=') }}
{{ '42'.zfill(5) }} {{ '-42'.zfill(5) }} {{ 'a'.center(4) }}|{{ 'ab'.center(5, '*') }}|{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '.') }}|{{ 'a\\tb'.expandtabs(4) }}
{{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'AB'.isupper() }} {{ 'ab'.islower() }} {{ 'Ab Cd'.istitle() }} {{ ''.isdigit() }} {{ 'é'.isascii() }} {{ 'a_1'.isidentifier() }} {{ '1.5'.isnumeric() }}
{{ l.index(1) }} {{ l.count(3) }} {{ (1, 2, 1).count(1) }} {{ l.copy() }} {{ d.copy() == d }}
{{ l.index(9) }}
{{ s | upper }} {{ s | lower }} {{ s | title }} {{ "they're o'neil x2y-z (a)".title() }} {{ "they're o'neil x2y-z (a)" | title }} {{ s | capitalize }} {{ i | upper }} {{ none | upper }}
{{ ' a ' | trim }}|{{ 'xax' | trim('x') }}|{{ 5 | trim }} {{ s | replace('o', '0') }} {{ s | replace('o', '0', 1) }} {{ 11 | replace(1, 2) }} {{ s | length }} {{ u | length }} {{ l | count }}
{{ l | join }} {{ l | join(', ') }} {{ [1, none, true, 'a'] | join('|') }} {{ people | join(',', attribute='name') }} {{ 'abc' | join('-') }} {{ none_list | join }}|{{ missing | join(',') }}
{{ l | first }} {{ l | last }} {{ s | first }} {{ none_list | first }}|{{ none_list | last }}|{{ d | first }} {{ (l | map('abs')) | first }}
{{ l | sort }} {{ l | sort(reverse=true) }} {{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ people | sort(attribute='age') | map(attribute='name') | list }} {{ people | sort(attribute='age,name', reverse=true) | map(attribute='name') | list }}
{{ [1, 'a'] | sort }}
{{ words | unique | list }} {{ words | unique(case_sensitive=true) | list }} {{ [1, 1.0, true, 2] | unique | list }} {{ people | unique(attribute='age') | map(attribute='name') | list }}
{{ l | min }} {{ l | max }} {{ words | min }} {{ words | max(case_sensitive=true) }} {{ people | max(attribute='age') }} {{ none_list | min }}| {{ l | sum }} {{ people | sum(attribute='age') }} {{ l | sum(start=10) }} {{ [1.5, 2] | sum }}
{{ l | reverse | list }} {{ s | reverse }} {{ l | list }} {{ s[:3] | list }} {{ d | list }} {{ range(3) | list }}
{{ l | length if l else 'none' }} {{ (l | map('string') | list) }} {{ words | map('upper') | join(' ') }} {{ words | map('replace', 'p', 'q') | list }} {{ people | map(attribute='role.id') | list }} {{ people | map(attribute='x', default='-') | list }}
{{ l | select('odd') | list }} {{ l | reject('odd') | list }} {{ [0, 1, '', 'a', none] | select | list }} {{ l | select('gt', 1) | list }} {{ l | select('in', [1, 2]) | list }} {{ [1, missing] | select('defined') | list | length }}
{{ people | selectattr('age', 'equalto', 30) | map(attribute='name') | list }} {{ people | rejectattr('age', '==', 30) | list }} {{ people | selectattr('name') | list | length }} {{ messages | selectattr('role', 'eq', 'user') | list }} {{ messages | rejectattr('tool_calls', 'defined') | list | length }}
{% for g in people | groupby('age') %}{{ g.grouper }}:{{ g.list | map(attribute='name') | join('+') }};{% endfor %}{% for age, list in people | groupby('age') %}{{ age }}{{ list | length }}{% endfor %} {{ people | groupby('role.id') | length }} {{ [{'k': 'B'}, {'k': 'a'}, {'k': 'b'}] | groupby('k') }}
{{ missing | default('x') }} {{ none | default('x') }} {{ none | default('x', true) }} {{ '' | default('x', boolean=true) }} {{ missing | d }}| {{ 0 | default(5, true) }} {{ d.nope | default('y') }} {{ false | default('z') }}
{{ '42' | int }} {{ '4.7' | int }} {{ 'x' | int }} {{ 'x' | int(5) }} {{ 'ff' | int(base=16) }} {{ '0x1F' | int(0, 16) }} {{ 3.9 | int }} {{ -3.9 | int }} {{ none | int }} {{ true | int }} {{ '1_000' | int }} {{ ' 12 ' | int }}
{{ '4.5' | float }} {{ 'x' | float }} {{ 3 | float }} {{ 'x' | float(1.5) }} {{ '1e3' | float }} {{ 'inf' | float }} {{ 3 | string }} {{ 3 | string ~ 'a' }} {{ none | string }} {{ [1] | string }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 1234 | round(-2) }} {{ 1250 | round(-2) }} {{ 2.1 | round(0, 'ceil') }} {{ 2.9 | round(method='floor') }} {{ 5 | round }} {{ -2.5 | round }} {{ 2.5 | round | int }}
{{ 'a\\nb\\n\\nc' | indent }}| {{ 'a\\nb' | indent(2, true) }}| {{ 'a\\n\\nb' | indent(2, blank=true) }}| {{ 'a\\nb\\n' | indent(width='>>') }}| {{ '' | indent }}| {{ 'a\\r\\nb' | indent(1) }}
{{ 'foo bar baz qux' | truncate(9) }} {{ 'foo bar baz qux' | truncate(9, true) }} {{ 'foo bar baz qux' | truncate(11) }} {{ 'foo bar baz qux' | truncate(11, false, '..', 0) }} {{ 'a b' | wordcount }} {{ 'a' | center(5) }}|
{{ '%s-%s' | format('a', 1) }} {{ '%(x)s' | format(x=2) }} {{ 'a b&c/d' | urlencode }} {{ {'a b': 'c&d'} | urlencode }} {{ 1000000 | filesizeformat }} {{ 1024 | filesizeformat(true) }} {{ 1 | filesizeformat }} {{ 10 | filesizeformat }}
{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 0) | list }} {{ [1, 2, 3, 4, 5] | slice(2) | list }} {{ [1, 2, 3, 4, 5] | slice(3, 'x') | list }}
{{ '<a>' | e }} {{ '<a>' | escape ~ '<' }} {{ '<a>' | safe }} {{ '<a>' | safe ~ '<b>' }} {{ '<a>' | safe + '<b>' }} {{ "<'\\">" | forceescape }} {{ '<' | e | e }}
{{ d | attr('b') }}| {{ s | attr('upper') is callable }} {{ -3 | abs }} {{ -3.5 | abs }} {{ (-3) | abs }}
{{ nope() }}
{{ s() }}
{{ s | nope }}
{{ s is nope }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }} {% for a in [1, 2] %}{% set x = a * 10 %}{{ x }}{% endfor %} {{ x }}
{% set ns = namespace(n=0, found=false) %}{% for a in l %}{% set ns.n = ns.n + a %}{% if a == 1 %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }} {{ ns.found }} {{ ns.nope is defined }} {{ ns['n'] }}
{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}{% set ns.c = 3 %}{{ ns.c }} {{ ns }}
{% set x = 1 %}{% set x.y = 2 %}
{% set ns = namespace() %}{% set ns._x = 1 %}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set (c, d2) = (3, 4) %}{{ c }}{{ d2 }} {% set t2 = 1, 2 %}{{ t2 }} {% set x %}a{{ 1 }}b{% endset %}[{{ x }}] {% set y | upper | trim %} abc {% endset %}[{{ y }}]
{% set a, b = [1, 2, 3] %}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }};{% endfor %}
{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}{{ loop.previtem is defined }};{% endfor %}{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}
{% for x in l if x > 1 %}{{ x }}{{ loop.length }}{% else %}none{% endfor %} {% for x in [] %}{% else %}empty{% endfor %} {% for x in l if x > 5 %}{% else %}none{% endfor %} {% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %} {% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{{ loop.index }}{% endfor %}
{% for a in [1, [2, [3]]] recursive %}{% if a is sequence %}<{{ loop(a) }}>{% else %}{{ a }}{{ loop.depth }}{% endif %}{% endfor %}
{% for x in 'abc' %}{{ x }}-{% endfor %} {% for x in missing %}{{ x }}{% endfor %} {% for k in d.c %}{{ k }}{% endfor %} {% for x in (1, 2) %}{{ x }}{% endfor %} {% for x in 1, 2, 3 %}{{ x }}{% endfor %}
{% for x in 5 %}{% endfor %}
{% for x in none %}{% endfor %}
{% macro m(a, b='x', c=none) %}[{{ a }}|{{ b }}|{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, c=2) }}{{ m('q', 'w', 'e') }}{{ m() }} {{ m.name }} {% set r = m(1) %}{{ r | length }}{{ m(b=1, a=2) }}
{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }} {% macro v() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ v(1, 2, x=3) }} {% macro r(n) %}{{ n }}{% if n > 0 %}{{ r(n - 1) }}{% endif %}{% endmacro %}{{ r(5) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro wrap(tag) %}<{{ tag }}>{{ caller() }}</{{ tag }}>{% endmacro %}{% call wrap('b') %}text {{ s }}{% endcall %} {% macro each(xs) %}{% for x in xs %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(x) each([1, 2]) %}({{ x }}){% endcall %}
{% set y = 1 %}{% macro outer() %}{{ y }}{% set y = 5 %}{{ y }}{% endmacro %}{{ outer() }}{{ y }} {% set z = 2 %}{% macro later() %}{{ z }}{% endmacro %}{% set z = 3 %}{{ later() }}
{% macro ns_(n) %}{% set n.x = n.x + 1 %}{% endmacro %}{% set n = namespace(x=0) %}{{ ns_(n) }}{{ ns_(n) }}{{ n.x }}
{% filter upper %}abc {{ s }}{% endfilter %} {% filter replace('a', 'b') | trim %} aaa {% endfilter %} {% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }} {% with %}{% set q = 3 %}{{ q }}{% endwith %}
{% generation %}answer {{ s }}{% set inner = 1 %}{% endgeneration %}{{ inner }}| {%- generation -%}  x  {%- endgeneration -%}  |
{% raw %}{{ not }} {% code %}{% endraw %} {%- raw -%}  x  {%- endraw -%}  y {# comment #}z{#- c -#} w
{{ raise_exception('custom message') }}
{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}
{{ range(5) | list }} {{ range(1, 10, 3) | list }} {{ range(5, 0, -2) | list }} {{ range(3) }} {{ range(0, 10, 5) }} {{ range(3) | length }} {{ range(0) | list }}
{{ range(1000000) | length }}
{{ dict(a=1, b='x') }} {{ dict([('k', 1)]) }} {{ dict({'a': 1}, c=2) }} {% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }} {% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}
{% print s, i %} {% block title %}in block {{ i }}{% endblock %} {% autoescape false %}{{ '<' }}{% endautoescape %}
{% include 'x' %}
{% unknown %}
{{ 'unclosed
{% if true %}open
{{ }}
{% for x in %}{% endfor %}
{{ 1 +* 2 }}
{{ (1, 2 }}
{% break %}
{{ messages[2].tool_calls[0]['function']['name'] }} {{ messages[2]['content'] if messages[2]['content'] is string else '' }} {{ messages[0].content[:2] }} {{ messages[2].tool_calls | length }} {{ messages[1].tool_calls is defined and messages[1].tool_calls }}
{{ messages | tojson }}
{{ messages }}
{{ bos_token + 'x' }} {{ eos_token }}|{{ bos_token ~ sep_token }}
{{ eos_token + 'x' }}
{{ s | length > 5 and s is string or false }} {{ 1 if s | length > 5 else 2 }} {{ not s is string }} {{ s is not string }} {{ 5 is not divisibleby 2 }} {{ - 1 | string }} {{ 2 * 3 | string }}
{{ l is defined and l | length > 2 }} {{ (l | length) * 2 }} {{ l | map('string') | map('length') | sum }} {{ [l, l] | map('sum') | list }} {{ (1 > 2) | string }} {{ [] is none }} {{ {} == {} }}
{{ d.a | tojson | length }} {{ (d.a | tojson)[1:5] }} {{ s.upper().lower().split()[0] }} {{ (s ~ '!')[-1] }} {{ 'a'.upper }}
{{ l | map('abs') }}
{{ strftime_now is defined }} {{ strftime_now('%Y') | length }} {{ strftime_now('%d %b %Y') | length >= 11 }} {{ strftime_now('%%') }}
{{ lipsum is defined }} {{ url_for is defined }} {{ loop is defined }} {{ caller is defined }} {{ varargs is defined }} {{ 'a' < 'B' }}
{{ {'a': 1, 'a': 2} }} {{ {'x': {'y': [1, {'z': 'q"'}]}} }} {{ [1, [2, (3,)]] }} {{ ['a', "b'c"] }} {{ {'k': missing} }}
{{ '\\u00e9\\x41\\101\\q\\'' }} {{ "a\\"b" }} {{ 'tab\\tx' }} {{ 'line\\
cont' }}
{{ 10 ** 20 }} {{ 2 ** 64 }} {{ -2 ** 63 }} {{ 18446744073709551616 }} {{ 1e22 }} {{ 123456789012345680.0 }} {{ 0.1 }} {{ 100.0 }} {{ 1e2 }} {{ 1.10 }} {{ 3.0e0 }}
{{ 3 | float | string }} {{ (3 / 3) | string }} {{ 7 / 7 }} {{ (10 / 2) | int }} {{ 0.1 * 3 }} {{ 1e15 + 0.5 }} {{ 1.0e-4 }} {{ 0.00012 }}
""".strip("\n").split("\n")
# A template of two lines stands as one above.
TEMPLATES = [t for t in TEMPLATES]
i = next(i for i, t in enumerate(TEMPLATES) if t.endswith("line\\\\") or t.endswith("{{ 'line\\"))
TEMPLATES[i : i + 2] = ["\n".join(TEMPLATES[i : i + 2])]
SPACES = [
    "a\n{% if true %}\nb\n{% endif %}\nc\n", "  {% if true %}  \n  b\n  {%- endif %}\n  c", "{% for x in l %}\n  {{ x }}\n{% endfor %}\n",
    "x  {%- if true -%}  y  {%- endif -%}  z", "x {%+ if true %}y{% endif +%}\nz", "    {%+ if true +%}\n    y\n    {% endif %}\n",
    "a {# c #}\nb\n  {# indented #}\nc", "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n", "a\rb\r\n", "{{ 'a\r\nb' }}\n\n", "{{- s -}}\n x \n{{- i }}\n\n\n",
    "  {{ i }}  {% set x = 1 %}  \n{{ x }}", "\t{% if true %}\tx{% endif %}\n", "{% if true -%}\n\n  x\n\n{%- endif %}\ny", "{{ i }}\n{{ i }}\n", "a{% raw %}\n {{ x }}\n{% endraw %}\nb",
    "  {% raw %}\n x\n  {% endraw %}\n y", "{%- for m in messages -%}\n{{- m.role -}}\n{%- endfor -%}\n", "{#- a -#}\n\n{# b +#}\nc", "{% set x = '{{ not }} %}' %}{{ x }}", "{{ {'a': {'b': 1}} }}", "{{ '}}' }}{{ \"{%\" }}",
    "{%if true%}a{%endif%}{{i}}{{-i-}}", "\n{% if true %}a{% endif %}\n\n", "{% if false %}a{% elif i == 7 %}b{% else %}c{% endif %}", "{% if\n  i == 7\n  and true %}multi{% endif %}",
    "{% set x = {\n  'a': 1,\n  'b': [1,\n 2],\n} %}{{ x }}", "a\x0b{% if true %}\x0b{% endif %}", "{{ i }}{# unclosed? #}{{ i }}", "{% for x in l -%}\n {{ x }},\n{%- endfor %}.",
    "\u00a0 {% if true %}x{% endif %}", "{{ 'x' if true }}{{ i if i is defined and i }}", "{% macro m() -%}\n  x\n{%- endmacro %}\n[{{ m() }}]", "{%- set a = 1 %}\n\n{{ a }}", "{% for a in l %}{{ a }}{{ ',' if not loop.last }}{% endfor %}",
]


def constructs():
    cases = []
    more = [t for name in ("more.txt", "models.txt", "further.txt") for t in (HERE / name).read_text().removesuffix("\n").split("\n---\n")]
    for t in TEMPLATES + SPACES + more:
        try:
            text, why = _compile_jinja_template(t).render(**V), None
        except Exception as e:
            text, why = None, f"{type(e).__name__}: {e}"
        if text is not None and " at 0x" in text:
            text, why = None, "an address in memory"
        cases.append({"template": t, "text": text, **({"error": why} if why else {})})
    return cases


M = {
    "simple": [{"role": "user", "content": "Hi <you> & me"}, {"role": "assistant", "content": "Yes.\nNo."}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}, {"role": "assistant", "content": "D"}],
    "tools": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2, "x": 1e-05, "ok": True, "no": None}}}]},
              {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "{\"t\": 3}"}, {"role": "assistant", "content": "Three."}],
    "reasoning": [{"role": "user", "content": "2+2"}, {"role": "assistant", "reasoning_content": "Add.", "content": "4"}, {"role": "user", "content": "3+3"}, {"role": "assistant", "thinking": "Add again.", "content": "6"}, {"role": "assistant", "reasoning": "Hm", "content": "<think>\nx\n</think>\n\n7"}],
    "null": [{"role": "user", "content": None}, {"role": "assistant", "content": None, "tool_calls": None, "reasoning_content": None}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "image"}, {"type": "text", "text": "two"}]}, {"role": "assistant", "content": [{"type": "text", "text": "ok"}]}],
    "odd": [{"role": "assistant", "content": "I begin"}, {"role": "user", "content": 5, "extra": {"a": [1.0, None]}}],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The \"weather\" <now>", "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Zürich"}, "days": {"type": "integer", "enum": [1, 2]}}, "required": ["city"]}}}]
LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|head|>system<|/head|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One tool call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|head|>assistant<|/head|>\\n\\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|head|>ipython<|/head|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\\n\\n' }}
{%- endif %}
"""
QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate user and assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
"""
DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' ~ message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- for tool in message['tool_calls'] %}{{'<|Assistant|><|call|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments']|tojson + '\\n' + '```' + '<|/call|>'}}{%- endfor %}{%- elif message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' ~ content ~ eos_token}}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{{'<|out|>' + message['content'] + '<|/out|>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|>'}}{% endif %}"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""
PHI = """{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""
GENERATION = """{% for m in messages %}
{% if m.role == 'assistant' %}
{{ m.role }}: {% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}

{% else %}
{{ m.role }}: {{ m.content }}
{% endif %}
{% endfor %}"""
PLAIN = "{% for m in messages %}{{ m.role }}={{ m.content }};{{ m }}\n{% endfor %}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ pad_token }}{{ sep_token }}{{ cls_token }}{{ mask_token }}{{ unk_token }}{{ image_token }}"
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "sep_token": "<sep>", "cls_token": "<cls>", "mask_token": "<mask>", "unk_token": "<unk>", "image_token": "<image>"}
NAMED = [{"name": "default", "template": "default {{ messages | length }}"}, {"name": "tool_use", "template": "tools {{ tools | length }}"}]
FOLDERS = {
    **{name: {"chat_template.jinja": t, "tokenizer_config.json": CONFIG} for name, t in [
        ("llama3", LLAMA3), ("qwen3", QWEN3), ("mistral", MISTRAL), ("deepseek", DEEPSEEK), ("gemma", GEMMA), ("phi", PHI), ("generation", GENERATION), ("plain", PLAIN)]},
    "crlf file": {"chat_template.jinja": PLAIN.replace("}}\n", "}}\r\n{% if true %}\r\nx\r\n{% endif %}\r\n"), "tokenizer_config.json": CONFIG},
    "config": {"tokenizer_config.json": {**CONFIG, "chat_template": "config\r\n{{ messages | length }}\n"}},
    "file before config": {"chat_template.jinja": "file", "tokenizer_config.json": {**CONFIG, "chat_template": "config"}},
    "chat_template.json is for processors": {"chat_template.json": {"chat_template": "json"}, "tokenizer_config.json": {**CONFIG, "chat_template": "config"}},
    "only chat_template.json": {"chat_template.json": {"chat_template": "json"}, "tokenizer_config.json": CONFIG},
    "named": {"tokenizer_config.json": {**CONFIG, "chat_template": NAMED}},
    "named without default": {"tokenizer_config.json": {**CONFIG, "chat_template": NAMED[1:]}},
    "named without tool_use": {"tokenizer_config.json": {**CONFIG, "chat_template": NAMED[:1]}},
    "file and more files": {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "extra {{ tools | length }}", "tokenizer_config.json": {**CONFIG, "chat_template": "config"}},
    "more files alone": {"additional_chat_templates/tool_use.jinja": "extra", "additional_chat_templates/default.jinja": "main", "tokenizer_config.json": {**CONFIG, "chat_template": "config"}},
    "more files without default": {"additional_chat_templates/rag.jinja": "extra", "tokenizer_config.json": {**CONFIG, "chat_template": "config"}},
    "one more file named default": {"additional_chat_templates/default.jinja": "main", "tokenizer_config.json": CONFIG},
    "file before named": {"chat_template.jinja": "file", "tokenizer_config.json": {**CONFIG, "chat_template": NAMED}},
    "null in config": {"tokenizer_config.json": {**CONFIG, "chat_template": None}},
    "tokens by default": {"chat_template.jinja": "[{{ bos_token }}|{{ eos_token }}|{{ pad_token }}]{{ bos_token is defined }}", "tokenizer_config.json": {"eos_token": None}},
}


def conversations():
    cases = []
    base = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    for folder, files in FOLDERS.items():
        with tempfile.TemporaryDirectory() as d:
            files = {**files, "tokenizer.json": base, "config.json": {"model_type": "llama"}}
            for name, content in files.items():
                path = pathlib.Path(d, name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode())
            t = AutoTokenizer.from_pretrained(d)
            for conversation, messages in M.items():
                for tools in [None, TOOLS] if conversation in ("simple", "tools") else [None]:
                    try:
                        text, why = t.apply_chat_template(messages, tools=tools, tokenize=False), None
                    except Exception as e:
                        text, why = None, f"{type(e).__name__}: {str(e)[:100]}"
                    cases.append({"folder": folder, "messages": conversation, "tools": tools is not None, "text": text, **({"error": why} if why else {})})
    return cases


def write(name, head, cases):
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    head = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, **head}
    (HERE / name).write_text(json.dumps(head, ensure_ascii=False)[:-1] + ', "cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    write("constructs.json", {"variables": V}, constructs())
    write("conversations.json", {"messages": M, "tools": TOOLS, "folders": FOLDERS}, conversations())
