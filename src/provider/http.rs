//! HTTP as the providers speak it: one request, no retries, no redirects, keys to their own origin alone.
