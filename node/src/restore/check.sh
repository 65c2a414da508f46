# Checks the file system in a part of a file.
#   FILE START LENGTH SECTOR TASK [MOUNT]
# Lengths are in bytes. Ends as the tool does; with 125 if it did not come to that. What it starts last takes the place
# of this shell, so that whoever ends the one ends the other.
exec 2>&1
file=$1 start=$2 length=$3 sector=$4 task=$5 mount=${6-}

# A tool gets all of a file, or a loop device over a part of it, which goes with the last one who has it open. e2fsck
# takes an offset, and needs nobody's right; but when it has replayed a journal it forgets it (1.47.0).
part=$file access=--read-only
case $task in
ext) part="$file?offset=$start" ;;
*-replay) access= ;;
esac
if [ "$task" = xfs-replay ] || { [ "$task" != ext ] && [ "$start $length" != "0 $(stat -c %s "$file")" ]; }; then
    part=$(losetup --find --show $access --offset "$start" --sizelimit "$length" --sector-size "$sector" "$file") ||
        { echo "no loop device"; exit 125; }
    exec 9<"$part" || exit 125
    losetup --detach "$part" || exit 125
fi

case $task in
ext) exec e2fsck -f -n "$part" ;;
# What a machine does at its start, and no more.
ext-replay) exec e2fsck -f -p "$part" ;;
xfs) exec xfs_repair -n $([ -b "$part" ] || echo -f) "$part" ;;
xfs-replay)
    # Another with the same UUID may be mounted: disks are copied.
    mount -t xfs -o nouuid,nosuid,nodev,noexec "$part" "$mount" || exit 124
    umount "$mount" || exit 125
    exec xfs_repair -n "$part"
    ;;
btrfs) exec btrfs check --readonly "$part" ;;
ntfs) exec ntfsresize --info -ff --no-progress-bar "$part" ;;
fat) exec fsck.fat -n "$part" ;;
esac
echo "unknown task $task"
exit 125
