// The npm client `ollama`, unchanged. Usage: node client.mjs SCENARIO '{"host": ..., ...}'
// Prints one JSON document; an error that the library raises is part of it.

import { Ollama } from 'ollama'

const [scenario, text] = process.argv.slice(2)
const ask = JSON.parse(text)
const client = new Ollama({ host: ask.host })

async function streamed(answer) {
  const records = []
  for await (const record of answer) records.push(record)
  return records
}

async function raised(promise) {
  try {
    return { unexpected: await promise }
  } catch (error) {
    return { name: error.name, message: error.message, status: error.status_code }
  }
}

const chat = { model: ask.model, messages: ask.messages, options: ask.options }
const generate = { model: ask.model, prompt: ask.prompt, options: ask.options }

const scenarios = {
  list: () => client.list(),
  show: () => client.show({ model: ask.model }),
  chat: () => client.chat(chat),
  chat_stream: async () => streamed(await client.chat({ ...chat, stream: true })),
  generate: () => client.generate(generate),
  generate_stream: async () => streamed(await client.generate({ ...generate, stream: true })),
  embed: () => client.embed({ model: ask.model, input: ask.input }),
  missing: () => raised(client.chat(chat)),
  cut: async () => raised(streamed(await client.chat({ ...chat, stream: true }))),
  abort: async () => {
    const stream = await client.chat({ ...chat, stream: true })
    const reading = raised(
      (async () => {
        for await (const record of stream) if (record.message.content) client.abort()
      })(),
    )
    return reading
  },
}

process.stdout.write(JSON.stringify(await scenarios[scenario]()))
