"""What a browser complains about."""

from __future__ import annotations


def complaints(page, *kinds: str) -> list[str]:
    """What goes wrong in a page of a browser, gathered from now on: messages of these kinds on its console, errors,
    and requests that fail."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type in kinds else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("requestfailed", lambda request: found.append(f"failed: {request.url}"))
    page.on("response", lambda answer: found.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
    return found
