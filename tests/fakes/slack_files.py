"""The files of the fake Slack: what people put into their messages, and what the bot uploads in three steps."""

from __future__ import annotations

import itertools
import json
from typing import Any

from tests.fakes.slack_workspace import Refused, Workspace

NEEDS = {
    "files.getUploadURLExternal": "files:write",
    "files.completeUploadExternal": "files:write",
    "files.delete": "files:write",
    "files.info": "files:read",
}
"""Method -> the scope it takes; a download takes files:read."""


class Files(Workspace):
    """`contents` holds the bytes of every file by its id, `downloads` the ids of those that were downloaded.

    `hidden_for`: so many times files.info does not tell yet where a file was shared.
    """

    def __init__(self, team: str) -> None:
        super().__init__(team)
        self.origin = ""
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.downloads: list[str] = []
        self.hidden_for = 0
        self._promised: dict[str, int] = {}
        self._ids = itertools.count(1)

    def put_file(
        self, content: bytes = b"\x89PNG", name: str = "photo.png", mimetype: str = "image/png"
    ) -> dict[str, Any]:
        """A file as it stands in the `files` of a message."""
        id = f"F{next(self._ids)}"
        self.contents[id] = content
        self.files[id] = {
            "id": id,
            "name": name,
            "title": name.partition(".")[0],
            "mimetype": mimetype,
            "mode": "hosted",
            "size": len(content),
            "url_private": f"{self.origin}/files/{id}",
            "url_private_download": f"{self.origin}/files/{id}",
            "permalink": f"https://fake.example/{id}",
            "shares": {},
        }
        return self.files[id]

    def shown(self, channel: str) -> list[tuple[str, list[bytes]]]:
        """The bot's messages that have files: the words, and what the files hold."""
        with_files = [said for said in self.by_bot(channel) if "files" in said]
        return [(said["text"], [self.contents[each["id"]] for each in said["files"]]) for said in with_files]

    def take(self, id: str, content: bytes) -> bool:
        """What was posted to the address of an upload; whether it was expected."""
        expected = self._promised.get(id) == len(content)
        if expected:
            self.contents[id] = content
        else:
            self.violations.append(f"an upload of {len(content)} bytes, where {self._promised.get(id)} were promised")
        return expected

    def _files_getUploadURLExternal(self, parameters: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        if int(parameters["length"]) < 1 or not parameters["filename"]:
            raise Refused("invalid_arguments")
        file = self.put_file(b"", parameters["filename"])
        self._promised[file["id"]] = int(parameters["length"])
        return {"upload_url": f"{self.origin}/upload/{file['id']}", "file_id": file["id"]}

    def _files_completeUploadExternal(self, parameters: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        given = json.loads(parameters["files"])
        if unknown := {key for each in given for key in each} - {"id", "title"}:
            self.violations.append(f"files.completeUploadExternal does not know {', '.join(sorted(unknown))} of a file")
        if not given or any(not self.contents.get(each["id"]) or each["id"] not in self._promised for each in given):
            raise Refused("file_not_found")
        channel, thread = self._writable(parameters["channel_id"]), parameters.get("thread_ts", "")
        if thread and all(message["ts"] != thread or "thread_ts" in message for message in channel.messages):
            raise Refused("thread_not_found")
        files = [self.files[each["id"]] | {"title": each["title"]} for each in given]
        words = parameters.get("initial_comment", "")
        said = self.say(channel.id, self.bot_user, words, thread, subtype="file_share", files=files)
        for each in given:
            del self._promised[each["id"]]
            self.files[each["id"]]["shares"] = {"private": {channel.id: [{"ts": said["ts"]}]}}
        return {"files": [{"id": each["id"], "title": each["title"]} for each in given]}

    def _files_delete(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """A message that holds nothing else goes with its last file."""
        if self.contents.pop(parameters["file"], None) is None:
            raise Refused("file_not_found")
        for channel in self.channels.values():
            for said in list(channel.messages):
                left = [each for each in said.get("files", ()) if each["id"] != parameters["file"]]
                if "files" in said and not left and not said["text"]:
                    channel.messages.remove(said)
                elif "files" in said:
                    said["files"] = left
        return {}

    def _files_info(self, parameters: dict[str, Any]) -> dict[str, Any]:
        file = self.files.get(parameters["file"])
        if file is None or file["id"] in self._promised:
            raise Refused("file_not_found")
        if self.hidden_for > 0:
            self.hidden_for -= 1
            return {"file": {**file, "shares": {}}}
        return {"file": file}
