"""The web page, `ppsd3 webui`: forms made from the arguments of a call, on the extra ``[webui]`` (Gradio).

`fields` says what a form asks for, `wording` in which language, `models` what there is to choose from, `drawing` turns
what a form says into pictures, `pictures` prepares those that a form takes; `forms` and `page` lay all of it out with
Gradio, and `app` serves it and nothing else. Only these last three need Gradio.
"""
