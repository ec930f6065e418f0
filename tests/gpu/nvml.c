/* The part of libnvidia-ml.so.1 that the adapter calls, played after a script: the file "script" beside the library,
 * read anew at every call. Built by rig.rs. Lines of the script:
 *
 *   init CODE                                 what nvmlInit_v2 returns
 *   driver VERSION
 *   hang 0|1                                  with 1, every call waits until the script says 0
 *   gpu UUID TOTAL RESERVED USED FAULT 0|1    FAULT: what calls about its memory return; 0: it is not there
 *   process GPU PID BYTES c|g                 by position of the gpu line; on the compute or the graphics list
 *
 * Types and codes as in NVIDIA's nvml.h.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, LOST = 15 };
enum { GPUS_MAX = 8, PROCESSES_MAX = 64, LINE_MAX_BYTES = 512 };

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } process_info;

struct gpu { char uuid[96]; unsigned long long total, reserved, used; int fault, present; };
struct process { int gpu; unsigned pid; unsigned long long bytes; char list; };
struct script {
    int init, hang, gpus, processes;
    char driver[64];
    struct gpu gpu[GPUS_MAX];
    struct process process[PROCESSES_MAX];
};

static void parse(struct script *s, FILE *file)
{
    char line[LINE_MAX_BYTES];
    memset(s, 0, sizeof *s);
    while (fgets(line, sizeof line, file)) {
        if (s->gpus < GPUS_MAX) {
            struct gpu *g = &s->gpu[s->gpus];
            s->gpus += sscanf(line, "gpu %95s %llu %llu %llu %d %d", g->uuid, &g->total, &g->reserved,
                              &g->used, &g->fault, &g->present) == 6;
        }
        if (s->processes < PROCESSES_MAX) {
            struct process *p = &s->process[s->processes];
            s->processes += sscanf(line, "process %d %u %llu %c", &p->gpu, &p->pid, &p->bytes, &p->list) == 4;
        }
        sscanf(line, "init %d", &s->init);
        sscanf(line, "hang %d", &s->hang);
        sscanf(line, "driver %63s", s->driver);
    }
}

/* Reads the script, and again while it says to hang. */
static void load(struct script *s)
{
    char path[4096 + sizeof "script"];
    Dl_info self;
    if (!dladdr(load, &self) || strlen(self.dli_fname) >= 4096)
        return;
    strcpy(path, self.dli_fname);
    strcpy(strrchr(path, '/') + 1, "script");
    do {
        FILE *file = fopen(path, "r");
        memset(s, 0, sizeof *s);
        if (!file)
            return;
        parse(s, file);
        fclose(file);
    } while (s->hang && usleep(5000) == 0);
}

/* A handle is the position of the gpu line, from 1: no null pointers. */
static struct gpu *at(struct script *s, void *device)
{
    load(s);
    return &s->gpu[(long)device - 1];
}

static int handle(struct script *s, int position, void **device)
{
    *device = (void *)(long)(position + 1);
    return s->gpu[position].fault == LOST ? LOST : SUCCESS;
}

static int text(char *to, unsigned size, const char *from)
{
    snprintf(to, size, "%s", from);
    return SUCCESS;
}

int nvmlInit_v2(void) { struct script s; load(&s); return s.init; }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlSystemGetDriverVersion(char *to, unsigned size) { struct script s; load(&s); return text(to, size, s.driver); }

int nvmlDeviceGetCount_v2(unsigned *count)
{
    struct script s;
    load(&s);
    *count = 0;
    for (int i = 0; i < s.gpus; i++)
        *count += s.gpu[i].present;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    struct script s;
    load(&s);
    for (int i = 0; i < s.gpus; i++)
        if (s.gpu[i].present && index-- == 0)
            return handle(&s, i, device);
    return INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device)
{
    struct script s;
    load(&s);
    for (int i = 0; i < s.gpus; i++)
        if (s.gpu[i].present && !strcmp(s.gpu[i].uuid, uuid))
            return handle(&s, i, device);
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *device, char *to, unsigned size) { struct script s; return text(to, size, at(&s, device)->uuid); }
int nvmlDeviceGetName(void *device, char *to, unsigned size) { (void)device; return text(to, size, "Stand-in GPU"); }

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory)
{
    struct script s;
    struct gpu *gpu = at(&s, device);
    if (memory->version != (sizeof *memory | 2 << 24))
        return INVALID_ARGUMENT;
    if (gpu->fault)
        return gpu->fault;
    memory->total = gpu->total;
    memory->reserved = gpu->reserved;
    memory->used = gpu->used;
    memory->free = gpu->total - gpu->reserved - gpu->used;
    return SUCCESS;
}

static int list(void *device, char which, unsigned *count, process_info *to)
{
    struct script s;
    unsigned room = *count, found = 0;
    load(&s);
    for (int i = 0; i < s.processes; i++) {
        struct process *p = &s.process[i];
        if (p->gpu != (long)device - 1 || p->list != which)
            continue;
        if (to && found < room)
            to[found] = (process_info){ p->pid, p->bytes, 0xFFFFFFFF, 0xFFFFFFFF };
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_info *to) { return list(device, 'c', count, to); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, process_info *to) { return list(device, 'g', count, to); }
