// Drives `ollama` for JavaScript through every call that it offers, against the server given as the argument.
import assert from 'node:assert'
import { Ollama } from 'ollama'

const ollama = new Ollama({ host: process.argv[2] })
const options = { num_predict: 5, temperature: 0 }
const messages = [{ role: 'user', content: 'héllo ✓' }]

const one = await ollama.chat({ model: 'tiny', messages, options })
assert.equal(one.message.role, 'assistant')
assert.equal(one.eval_count, 5)
let said = ''
for await (const part of await ollama.chat({ model: 'tiny', messages, options, stream: true })) {
  said += part.message.content
}
assert.equal(said, one.message.content)

const text = await ollama.generate({ model: 'tiny', prompt: 'hello', options })
assert.ok(text.done && text.context.length > 5)
said = ''
for await (const part of await ollama.generate({ model: 'tiny', prompt: 'hello', options, stream: true })) {
  said += part.response
}
assert.equal(said, text.response)

const schema = {
  type: 'object', properties: { yes: { type: 'boolean' } }, required: ['yes'], additionalProperties: false,
}
const formed = await ollama.chat({ model: 'tiny', messages, format: schema, think: false, options: { num_predict: 300 } })
assert.deepEqual(Object.keys(JSON.parse(formed.message.content)), ['yes'])

const likely = await ollama.generate({ model: 'tiny', prompt: 'x', logprobs: true, top_logprobs: 2, options })
assert.equal(likely.logprobs.length, 5)

assert.equal((await ollama.embed({ model: 'tiny', input: ['a', 'b'] })).embeddings.length, 2)
assert.equal((await ollama.embeddings({ model: 'tiny', prompt: 'a' })).embedding.length, 64)
assert.ok((await ollama.list()).models.some(model => model.name === 'tiny:latest'))
assert.ok((await ollama.ps()).models.some(model => model.name === 'tiny:latest'))
assert.equal((await ollama.show({ model: 'tiny' })).details.family, 'qwen3moe')
assert.match((await ollama.version()).version, /^\d+\.\d+\.\d+$/)

await assert.rejects(ollama.show({ model: 'none' }), /model 'none' not found/)
await assert.rejects(ollama.copy({ source: 'none', destination: 'x' }), /model 'none' not found/)
await assert.rejects(ollama.delete({ model: 'none' }), /model 'none' not found/)
await assert.rejects(ollama.pull({ model: '127.0.0.1:9/a/b' }), /pull model manifest/)
await assert.rejects(ollama.push({ model: 'none' }))
await assert.rejects(ollama.create({ model: 'x', from: 'none' }), /not found/)

const long = await ollama.chat({ model: 'tiny', messages, stream: true, options: { num_predict: 400 } })
let parts = 0
await assert.rejects(async () => {
  for await (const part of long) {
    if (part && ++parts === 2) long.abort()
  }
}, { name: 'AbortError' })

console.log('every call answered')
