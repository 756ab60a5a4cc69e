"""What people see: numbers, tables, progress, figures.

    text                number, interval, duration and scale as text: the one place that decides how they look
    tables              tables for a terminal, in one style
    html                escaped text and tables as HTML
    progress            what a command shows while it runs
    suggestion_text     a suggestion as text and HTML
    suggestion_figure   a suggestion as a figure
    runs_suggestion     a suggestion from a table of runs, and what it rests on
    diagnosis_text      a diagnosis as tables and sentences
    diagnosis_figures   a diagnosis as a figure
    figures             a study as figures: landscape, drift, importance, prediction, divergence
    landscape_figure    the first of these: the loss along each HP at every scale
    figure_style        size, colours and axes of all figures

Everything here only reads: nothing is written to a study, no figure is shown.
"""
