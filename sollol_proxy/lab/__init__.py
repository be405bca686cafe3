"""Things to try the proxy with: scripted hosts, a tiny real host, a demo. For the CLI and tests."""
