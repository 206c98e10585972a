"""The patient channel: a relay in the DMZ and a WeChat Mini Program."""
