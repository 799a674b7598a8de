"""What a browser complains about."""

from __future__ import annotations


def complaints(page, *kinds: str) -> list[str]:
    """What goes wrong in a page of a browser, gathered from now on: messages of these kinds on its console, errors,
    and requests that fail. (A picture's that the page itself breaks off is none: JupyterLab asks for one of a Markdown
    cell under its raw address first.)"""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type in kinds else None)
    page.on("pageerror", lambda error: found.append(str(error)))

    def failed(request) -> None:
        if request.failure != "net::ERR_ABORTED" or request.resource_type != "image":
            found.append(f"failed: {request.url} ({request.failure})")

    page.on("requestfailed", failed)
    page.on("response", lambda answer: found.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
    return found
