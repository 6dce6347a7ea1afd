# SPDX-License-Identifier: Apache-2.0
"""Models behind a URL: any server that speaks OpenAI's protocol, asked with many calls at once."""
