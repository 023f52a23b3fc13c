"""The plain prompt (`plain_prompt.py`) as a Jinja chat template, which a run's final folder carries.

Servers and `apply_chat_template` take the template that lies beside the weights. Without this one a base's own chat
template would be taken, which is not what was trained, or none at all. Messages become a question and its context as
in a conversation that is trained on (`readers/conversations.py`): the system messages, then the earlier turns, are the
context; a passage that the question is about is sent as the system message.

Jinja cannot compose decomposed Hangul (NFC) or tidy white space inside the lines of a context, as `plain_prompt.py`
does.
"""

from llm_qa.data.plain_prompt import ANSWER_TAG, CONTEXT_TAG, NAMES, QUESTION_TAG

PLAIN_CHAT_TEMPLATE = f"""\
{{%- for message in messages -%}}
  {{%- if message['content'] is not string -%}}
    {{{{- raise_exception('The content of a message must be text.') -}}}}
  {{%- elif message['role'] not in ['system', 'developer', 'user', 'assistant'] -%}}
    {{{{- raise_exception('The role of a message must be system, user or assistant.') -}}}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- set answered = messages[-1]['role'] == 'assistant' -%}}
{{%- set asked = messages | length - (2 if answered else 1) -%}}
{{%- if asked < 0 or messages[asked]['role'] != 'user' -%}}
  {{{{- raise_exception('The messages must end with a question of the user.') -}}}}
{{%- endif -%}}
{{%- set context = namespace(parts=[]) -%}}
{{%- for message in messages[:asked] if message['role'] in ['system', 'developer'] and message['content'] | trim -%}}
  {{%- set context.parts = context.parts + [message['content'] | trim] -%}}
{{%- endfor -%}}
{{%- for message in messages[:asked] if message['role'] in ['user', 'assistant'] -%}}
  {{%- set name = '{NAMES["user"]}' if message['role'] == 'user' else '{NAMES["assistant"]}' -%}}
  {{%- set context.parts = context.parts + [name + message['content'] | trim] -%}}
{{%- endfor -%}}
{{%- if context.parts -%}}
  {{{{- '{CONTEXT_TAG} ' + context.parts | join('\\n\\n') + '\\n\\n' -}}}}
{{%- endif -%}}
{{{{- '{QUESTION_TAG} ' + messages[asked]['content'].split() | join(' ') -}}}}
{{%- if answered -%}}
  {{{{- '\\n\\n{ANSWER_TAG} ' + messages[-1]['content'] | trim + eos_token -}}}}
{{%- elif add_generation_prompt -%}}
  {{{{- '\\n\\n{ANSWER_TAG}' -}}}}
{{%- endif -%}}
"""
