/* Looks, as fast as it can, at every process that it sees, and says what a container should not find:
 *   ROOT      a file of the host through its root directory
 *   CAPS      more capabilities than its own
 *   FILTER    no system call filter
 *   CHANGED   the host's program took another mode or owner
 * and, so that silence means something, MET when it has seen the host's program (told by its size), NEW for every
 * process. Each word comes once per process. Ends when the file DONE lies beside its output.
 *
 * snoop MARKER SIZE DONE */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROOT = 1, CAPS = 2, FILTER = 4, CHANGED = 8, MET = 16, NEW = 32, PIDS = 1 << 22 };
static unsigned char said[PIDS];

static void say(int pid, int bit, const char *word) {
    if (!(said[pid] & bit)) {
        said[pid] |= bit;
        printf("%s %d\n", word, pid);
        fflush(stdout);
    }
}

static unsigned long long field(const char *status, const char *name, int base) {
    const char *found = strstr(status, name);
    return found ? strtoull(found + strlen(name), NULL, base) : 0;
}

static int read_status(int pid, char *status, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    int file = open(path, O_RDONLY);
    if (file < 0)
        return 0;
    ssize_t count = read(file, status, size - 1);
    close(file);
    status[count > 0 ? count : 0] = 0;
    return count > 0;
}

static void look(int pid, unsigned long long own, const char *marker, long long size) {
    char path[4200], status[4096];
    struct stat found;
    if (!read_status(pid, status, sizeof status))
        return;
    say(pid, NEW, "NEW");
    snprintf(path, sizeof path, "/proc/%d/root%s", pid, marker);
    if (access(path, F_OK) == 0)
        say(pid, ROOT, "ROOT");
    if (field(status, "CapPrm:", 16) & ~own)
        say(pid, CAPS, "CAPS");
    if (field(status, "\nSeccomp:", 10) == 0 && strstr(status, "State:\tZ") == NULL)
        say(pid, FILTER, "FILTER");
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    int program = open(path, O_RDONLY);
    if (program < 0)
        return;
    if (fstat(program, &found) == 0 && found.st_size == size) {
        say(pid, MET, "MET");
        /* By the descriptor: the process may be executing something else by now. */
        snprintf(path, sizeof path, "/proc/self/fd/%d", program);
        if (fchmod(program, 0777) == 0 || fchown(program, 1, 1) == 0 || chmod(path, 0777) == 0 ||
            chown(path, 1, 1) == 0 || open(path, O_WRONLY) >= 0)
            say(pid, CHANGED, "CHANGED");
    }
    close(program);
}

int main(int count, char **arguments) {
    char status[4096];
    if (count != 4 || !read_status(getpid(), status, sizeof status))
        return 1;
    unsigned long long own = field(status, "CapPrm:", 16);
    int highest = getpid();
    printf("READY 0\n");
    fflush(stdout);
    while (access(arguments[3], F_OK) != 0) {
        for (int pid = 1; pid < highest + 16 && pid < PIDS; pid++) {
            if (pid == getpid())
                continue;
            look(pid, own, arguments[1], atoll(arguments[2]));
            if ((said[pid] & NEW) && pid > highest)
                highest = pid;
        }
    }
    return 0;
}
