// What the page says, in its two languages.

export const TEXTS = {
  en: {
    newChat: "New chat", chats: "Chats", theme: "Light / dark", menu: "Menu", prompt: "Prompt",
    settings: "Settings", placeholder: "Write a message", send: "Send", stop: "Stop",
    system: "System prompt", apiKey: "API key", reset: "Reset", close: "Close", copy: "Copy",
    promptTitle: "What the model is given", regenerate: "Again", edit: "Edit", remove: "Delete",
    thinking: "Thinking", hello: "Ask something. The conversation stays in this browser.",
    loading: "The model is being loaded", offline: "The server does not answer",
    tokens: "tokens", perSecond: "tokens/s", context: "Context used, in tokens",
    save: "Send", cancel: "Cancel", models: "Model",
    untitled: "New chat", limit: "cut off at the token limit", other: "中文",
    removeChat: "Delete this chat?", max_tokens: "Most tokens", seed: "Seed (-1: random)",
  },
  zh: {
    newChat: "新对话", chats: "对话", theme: "浅色 / 深色", menu: "菜单", prompt: "提示词",
    settings: "设置", placeholder: "输入消息", send: "发送", stop: "停止",
    system: "系统提示词", apiKey: "API 密钥", reset: "恢复默认", close: "关闭", copy: "复制",
    promptTitle: "模型收到的内容", regenerate: "重新生成", edit: "编辑", remove: "删除",
    thinking: "思考", hello: "请提问。对话只保存在此浏览器中。",
    loading: "正在加载模型", offline: "服务器没有响应",
    tokens: "个词元", perSecond: "词元/秒", context: "已用上下文（词元）", save: "发送", cancel: "取消",
    models: "模型",
    untitled: "新对话", limit: "已达词元上限", other: "English",
    removeChat: "删除这个对话？", max_tokens: "最多词元", seed: "种子（-1：随机）",
  },
};
