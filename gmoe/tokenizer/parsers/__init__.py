"""An answer's text, as it streams, into content, thinking and tool calls: one file a dialect."""
