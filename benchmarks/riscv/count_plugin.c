// QEMU plugin: counts the guest instructions that all threads of a program execute. The file of its
// argument out=FILE gets a line with the count so far whenever the program calls
// getpriority(anything, 0x72696C6C), which does nothing else, and when it ends. A block that a fault
// leaves early is counted whole. It needs qemu-plugin.h of QEMU 9 or newer, or of 5.2 (which runs
// RVV 0.7.1, and whose one counter is exact for one thread only), and no other header of QEMU.
#include <glib.h>
#include <qemu-plugin.h>
#include <stdio.h>
#include <string.h>

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

enum { GETPRIORITY = 141, MARK = 0x72696C6C };

#if QEMU_PLUGIN_VERSION >= 2
static qemu_plugin_u64 count;
#else
static uint64_t count;
#endif
static FILE *file;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  (void)id;
  const size_t size = qemu_plugin_tb_n_insns(block);
#if QEMU_PLUGIN_VERSION >= 2
  qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, QEMU_PLUGIN_INLINE_ADD_U64, count, size);
#else
  qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &count, size);
#endif
}

static void print(void) {
#if QEMU_PLUGIN_VERSION >= 2
  const uint64_t total = qemu_plugin_u64_sum(count);
#else
  const uint64_t total = count;
#endif
  fprintf(file, "%llu\n", (unsigned long long)total);
}

static void called(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t which,
                   uint64_t who, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                   uint64_t a8) {
  (void)id, (void)vcpu, (void)which, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number == GETPRIORITY && who == MARK) print();
}

static void ended(qemu_plugin_id_t id, void *data) {
  (void)id, (void)data;
  print();
  fclose(file);
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                           char **argv) {
  (void)info;
  const char *name = "out=";
  if (argc != 1 || strncmp(argv[0], name, strlen(name)) != 0) return -1;
  file = fopen(argv[0] + strlen(name), "w");
  if (file == NULL) return -1;
#if QEMU_PLUGIN_VERSION >= 2
  count = qemu_plugin_scoreboard_u64(qemu_plugin_scoreboard_new(sizeof(uint64_t)));
#endif
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
