"""One platform a file: payload to InboundMessage, OutboundMessage to API call."""
