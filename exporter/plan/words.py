"""The words that prompts are made of: short and common, so that nearly every tokenizer has each as one token. Pure."""

_TEXT = """
    able act add age ago air all also and any are area arm art ask away baby back bad bag ball bank base bear beat
    bed best big bird blue boat body bone book born both box boy burn busy but buy call came can car card care case
    city coat cold come cook cool copy corn cost crop cry cut dark day dead deal dear deep did does dog done door
    down draw drop dry duty each ear ease east eat edge egg else end even ever eye face fact fair fall far farm fast
    fat fear feed feel feet few fill find fine fire fish fit five flat flow fly food foot form four free full fun
    game gas gave get girl give glad gold gone good got gray grow gun hair half hand hard hat have head hear heat
    held help high hill hit hold hole home hope hot hour how huge hunt ice idea iron job join joy jump just keep key
    kind king knew know lady lake land last late law lay lead left leg less lie life lift like line list live log
    lone long look lost lot loud love low made main make man many map mark mass may mean meat meet men mile milk
    mind mine miss mix moon more most move much must name near neck need new next nine noon nor nose note off oil
    old once one only open our out over own page pair part pass past path pay plan play poor port post pull push put
    race rail rain ran read real red rest rich ride ring rise road rock roll room root rope rose row rule run safe
    said sail salt same sand saw say sea seat see seed seem self sell send sent set ship shoe shop show side sign
    sing sit six size skin sky slip slow snow soft soil some son song soon spot star stay step stop such suit sun
    sure swim tail take talk tall team tell ten term test than that the them then they thin this time tiny tire tone
    too took tool top town tree trip true try tube turn two type unit use vary very view wait walk wall want war
    warm was wash wave way wear week well went were west what when who why wide wife wild will win wind wing wire
    wish with wood word work yard year yes yet you
"""
WORDS = tuple(_TEXT.split())
