// The page: a chat by /api/chat, and the experts of the model by /api/experts once a second.
const $ = id => document.getElementById(id)
const messages = []
let answering = null // the AbortController of the answer that runs
let key = ''
let view = null // the last look at the experts of the chosen model

async function ask(path, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {}
  const response = await fetch(path, { ...options, headers })
  if (response.status === 401 && (key = prompt('API key') ?? '')) return ask(path, options)
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error ?? response.statusText)
  return response
}

// ---- chat

async function listModels() {
  const { models } = await (await ask('api/tags')).json()
  const chosen = $('model').value
  $('model').replaceChildren(...models.map(model => new Option(model.name, model.name)))
  if (models.some(model => model.name === chosen)) $('model').value = chosen
  if (!models.length) say('error', 'There is no model yet. Start with: gmoe serve FILE.gguf, or gmoe pull NAME.')
  const able = new Map(models.map(model => [model.name, model.capabilities ?? []]))
  const showThink = () => { $('think').parentElement.hidden = !able.get($('model').value)?.includes('thinking') }
  $('model').onchange = showThink
  showThink()
}

function say(kind, text) {
  const item = document.createElement('li')
  item.className = kind
  item.textContent = text
  $('messages').append(item)
  item.scrollIntoView({ block: 'end' })
  return item
}

function answerItem() {
  const item = say('assistant', '')
  const thinking = document.createElement('details')
  const summary = document.createElement('summary')
  const thoughts = document.createElement('div')
  summary.textContent = 'Thinking'
  thinking.append(summary, thoughts)
  thinking.hidden = true
  const text = document.createElement('div')
  const footer = document.createElement('footer')
  item.append(thinking, text, footer)
  return { item, thinking, thoughts, text, footer }
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let held = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) break
    held += value
    const whole = held.split('\n')
    held = whole.pop()
    for (const line of whole) if (line) yield JSON.parse(line)
  }
}

async function send(prompt) {
  messages.push({ role: 'user', content: prompt })
  say('user', prompt)
  const shown = answerItem()
  answering = new AbortController()
  $('send').textContent = 'Stop'
  const body = { model: $('model').value, messages, progress: true }
  if (!$('think').parentElement.hidden) body.think = $('think').checked
  let content = ''
  try {
    const response = await ask('api/chat', { method: 'POST', body: JSON.stringify(body), signal: answering.signal })
    for await (const line of lines(response)) {
      if (line.error) throw new Error(line.error)
      $('state').textContent = line.status ?? ''
      if (line.message?.thinking) {
        shown.thinking.hidden = false
        shown.thoughts.textContent += line.message.thinking
      }
      content += line.message?.content ?? ''
      shown.text.textContent = content
      if (line.done) shown.footer.textContent = figures(line)
      shown.item.scrollIntoView({ block: 'end' })
    }
  } catch (error) {
    if (error.name !== 'AbortError') say('error', error.message)
  } finally {
    messages.push({ role: 'assistant', content })
    answering = null
    $('send').textContent = 'Send'
    $('state').textContent = ''
  }
}

function figures(line) {
  const seconds = line.eval_duration / 1e9
  const parts = [`${line.eval_count} tokens`]
  if (line.eval_count > 1) parts.push(`${((line.eval_count - 1) / seconds).toFixed(1)} tokens/s`)
  parts.push(`first after ${(line.prompt_eval_duration / 1e9).toFixed(2)} s`)
  if (line.experts) {
    const lossy = ['twin', 'skip', 'substitute'].reduce((sum, name) => sum + (line.experts.actions?.[name]?.mass ?? 0), 0)
    const tokens = line.eval_count + line.prompt_eval_count
    const layers = view?.layers.length ?? 0
    parts.push(lossy && layers ? `${percent(lossy / tokens / layers)} approximated` : 'exact')
  }
  return parts.join(' · ')
}

$('form').addEventListener('submit', event => {
  event.preventDefault()
  if (answering) return answering.abort()
  const prompt = $('prompt').value.trim()
  if (!prompt || !$('model').value) return
  $('prompt').value = ''
  send(prompt)
})
$('prompt').addEventListener('keydown', event => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && !answering) {
    event.preventDefault()
    $('form').requestSubmit()
  }
})
$('clear').addEventListener('click', () => {
  answering?.abort()
  messages.length = 0
  $('messages').replaceChildren()
  $('prompt').focus()
})

// ---- experts

const stops = [[42, 157, 143], [233, 196, 106], [231, 111, 81]]
const percent = share => `${(100 * share).toFixed(share > 0.9995 || share === 0 ? 0 : 1)} %`

function size(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  const n = bytes ? Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10)) : 0
  return `${(bytes / 1024 ** n).toFixed(n && bytes / 1024 ** n < 100 ? 1 : 0)} ${units[n]}`
}

function colour(share) {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches
  const all = [dark ? [42, 46, 52] : [238, 240, 239], ...stops]
  const at = share * (all.length - 1)
  const n = Math.min(all.length - 2, Math.floor(at))
  return all[n].map((low, i) => Math.round(low + (at - n) * (all[n + 1][i] - low)))
}

function draw() {
  const canvas = $('heat')
  const rows = view.counts.length
  const columns = view.n_expert
  const left = 26 // where the numbers of the layers stand
  const width = Math.max(canvas.parentElement.clientWidth, left + 2 * columns)
  const cell = (width - left) / columns
  const height = Math.max(5, Math.min(22, Math.max(cell, 420 / rows)))
  const ratio = devicePixelRatio || 1
  canvas.style.width = `${width}px`
  canvas.style.height = `${rows * height}px`
  canvas.width = width * ratio
  canvas.height = rows * height * ratio
  const pen = canvas.getContext('2d')
  pen.scale(ratio, ratio)
  const gap = cell > 5 ? 1 : 0
  const most = Math.max(1, ...view.counts.flat())
  const every = Math.ceil(14 / height)
  pen.font = '11px system-ui, "DejaVu Sans", sans-serif'
  pen.textAlign = 'right'
  pen.textBaseline = 'middle'
  pen.fillStyle = getComputedStyle($('under')).color
  view.layers.forEach((layer, y) => y % every || pen.fillText(layer, left - 6, (y + 0.5) * height))
  view.counts.forEach((row, y) => row.forEach((count, x) => {
    const [r, g, b] = colour(Math.sqrt(count / most))
    pen.fillStyle = `rgb(${r} ${g} ${b})`
    pen.globalAlpha = view.resident[y][x] ? 1 : 0.35
    pen.fillRect(left + x * cell, y * height, cell - gap, height - gap)
  }))
  canvas.onmousemove = event => {
    const x = Math.max(0, Math.min(columns - 1, Math.floor((event.offsetX - left) / cell)))
    const y = Math.min(rows - 1, Math.floor(event.offsetY / height))
    const total = view.counts[y].reduce((sum, count) => sum + count, 0)
    const share = total ? ` (${percent(view.counts[y][x] / total)} of the layer)` : ''
    const where = view.resident[y][x] ? 'in memory' : 'on disk'
    $('under').textContent = `layer ${view.layers[y]}, expert ${x}: ${view.counts[y][x]} uses${share}, ${where}`
  }
  canvas.onmouseleave = describe
}

function describe() {
  if (!view.layers.length) {
    $('under').textContent = 'A dense model: it has no experts.'
    return
  }
  const used = view.counts.flat().filter(count => count).length
  const all = view.layers.length * view.n_expert
  $('under').textContent = `${view.layers.length} layers of ${view.n_expert} experts, ${view.n_expert_used} a token; ` +
    `${used} of ${all} used lately`
}

function show(found) {
  view = found
  const tiers = Object.entries(view.stats).filter(([name, value]) => name !== 'actions' && value?.hits !== undefined)
  const hits = tiers.reduce((sum, [, tier]) => sum + tier.hits, 0)
  const misses = tiers.reduce((sum, [, tier]) => sum + tier.misses, 0)
  const stall = tiers.reduce((sum, [, tier]) => sum + tier.stall_seconds, 0)
  $('rate').textContent = view.tokens_per_second ? view.tokens_per_second.toFixed(1) : '–'
  $('hits').textContent = hits + misses ? percent(hits / (hits + misses)) : '–'
  $('stall').textContent = `${stall.toFixed(stall < 10 ? 2 : 0)} s`
  $('approximated').textContent = percent(view.approximated)
  const total = view.tiers.reduce((sum, tier) => sum + tier.bytes, 0) || 1
  $('tiers').replaceChildren(...view.tiers.map(tier => {
    const part = document.createElement('div')
    part.style.width = `${100 * tier.bytes / total}%`
    return part
  }))
  $('tiertext').textContent = 'experts: ' + view.tiers.map(tier => `${size(tier.bytes)} ${tier.name}`).join(', ')
  $('window').textContent = `(last ${view.window_seconds} s)`
  $('scale').hidden = !view.layers.length
  if (view.layers.length) draw()
  if (!$('heat').matches(':hover')) describe()
}

const GONE = 'The server does not answer.'

async function look() {
  if (document.hidden) return
  try {
    const { models } = await (await ask('api/experts')).json()
    if ($('state').textContent === GONE) $('state').textContent = ''
    const found = models.find(model => model.model === $('model').value) ?? models[0]
    if (found) show(found)
  } catch {
    $('state').textContent = GONE
  }
}

listModels().then(() => { look(); setInterval(look, 1000) }, error => say('error', error.message))
setInterval(() => answering || listModels().catch(() => {}), 30000)
addEventListener('resize', () => view?.layers.length && draw())
