"""The relay in the DMZ: it holds masked reports and speaks with WeChat.

Nothing here can reach the node. The node pushes masked reports and binding
offers to `/hook`; patients' phones read `/api`; `push` tells WeChat that a
report changed. The relay has its own database and its own key.
"""
