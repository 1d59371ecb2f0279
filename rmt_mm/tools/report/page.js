// Draw every chart, in the colours of the page's light or dark mode.
const colours = () => {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue('--ink').trim();
  const line = style.getPropertyValue('--line').trim();
  const card = style.getPropertyValue('--card').trim();
  const axis = {gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line};
  return {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {color: ink, size: 13, family: 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'},
    hoverlabel: {bgcolor: card, bordercolor: line, font: {color: ink}},
    xaxis: axis, yaxis: axis,
  };
};
const merge = (layout, theme) => ({
  ...layout, ...theme, xaxis: {...layout.xaxis, ...theme.xaxis}, yaxis: {...layout.yaxis, ...theme.yaxis},
});
const config = {responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ['select2d', 'lasso2d']};
const charts = [...document.querySelectorAll('.chart')].map(
  (div) => [div, JSON.parse(div.parentElement.querySelector('script.figure').textContent)]
);
const draw = () => charts.forEach(([div, figure]) => Plotly.react(div, figure.data, merge(figure.layout, colours()), config));
draw();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
